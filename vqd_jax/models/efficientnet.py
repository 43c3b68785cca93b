"""EfficientNet-Lite0, inference only (Tan & Le 2019, arXiv:1905.11946; Lite: ReLU6, no
squeeze-and-excitation).

Batch normalisation is folded into the convolutions when the weights are converted, so that each
layer is one convolution with a bias.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

STAGES = (  # repeats, kernel, stride of the first repeat, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000

Activations = Float[Array, "b _ _ _"]


class Depthwise(nn.Module):
    """Depthwise k x k convolution, "SAME", as a sum of shifted images.

    On a CPU this is 2 to 40 times as fast as XLA's grouped convolution.
    """

    kernel: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        k, s, (b, H, W, c) = self.kernel, self.stride, x.shape
        weights = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c)).astype(
            self.dtype
        )
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(self.dtype)
        # From the first to the last output, in input pixels
        spans = [(-(-size // s) - 1) * s for size in (H, W)]
        pads = [max(span + k - size, 0) for span, size in zip(spans, (H, W), strict=True)]
        x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
        total = bias[None, None, None]
        for i in range(k):
            for j in range(k):
                shifted = lax.slice(
                    x, (0, i, j, 0), (b, i + spans[0] + 1, j + spans[1] + 1, c), (1, s, s, 1)
                )
                total = total + shifted * weights[i, j][None, None]
        return total


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise k x k, linear 1x1 projection."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.relu6(nn.Conv(hidden, (1, 1), dtype=self.dtype, name="expand")(y))
        y = nn.relu6(Depthwise(self.kernel, self.stride, self.dtype, name="depthwise")(y))
        y = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="project")(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y


class EfficientNetLite0(nn.Module):
    """Images in [-1, 1] -> (average-pooled features, ImageNet logits), float32."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b 1280"], Float[Array, "b 1000"]]:
        x = (images * 127.5 + 0.5) / 128  # trained on (byte - 127) / 128
        x = nn.relu6(nn.Conv(STEM, (3, 3), (2, 2), dtype=self.dtype, name="stem")(x))
        i = 0
        for repeats, kernel, stride, expansion, channels in STAGES:
            for j in range(repeats):
                x = Block(
                    kernel,
                    stride if j == 0 else 1,
                    expansion,
                    channels,
                    self.dtype,
                    name=f"block{i}",
                )(x)
                i += 1
        x = nn.relu6(nn.Conv(HEAD, (1, 1), dtype=self.dtype, name="head")(x))
        features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return features, nn.Dense(CLASSES, name="classifier")(features)
