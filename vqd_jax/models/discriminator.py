"""PatchGAN (Isola et al. 2017, arXiv:1611.07004) as VQGAN trains it, and its hinge losses.

GroupNorm replaces the original's BatchNorm: the network then has no state, and its output does not
depend on how a batch is split over devices.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import PRNGKey
from vqd_jax.models.linear import Conv

_WEIGHTS = nn.initializers.normal(0.02)
_PAD = ((1, 1), (1, 1))
Patches = Float[Array, "b h w 1"]


def _around_one(
    key: PRNGKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "..."]:
    return 1 + _WEIGHTS(key, shape, dtype)


class PatchGAN(nn.Module):
    """Images in [-1, 1] -> one real/fake logit per patch, float32.

    `layers` 4x4 convolutions of stride 2, then two of stride 1, all with padding 1; the width
    doubles with each layer, up to 8 times. A patch covers 70 pixels with 3 layers, as published
    with a width of 64, and 34 with 2, for images of 32 pixels.
    """

    width: int
    layers: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Patches:
        if self.width % 4 or self.width < 4 or self.layers < 1:
            raise UserError(
                f"PatchGAN needs a width that is a multiple of 4 and at least 1 layer, "
                f"got width={self.width}, layers={self.layers}"
            )
        if min(images.shape[1:3]) < 3 * 2**self.layers:
            raise UserError(
                f"PatchGAN with layers={self.layers} needs images of at least "
                f"{3 * 2**self.layers} pixels "
                f"a side, got {images.shape[1]}x{images.shape[2]}"
            )
        x = nn.leaky_relu(
            self._conv(self.width, 2, "conv0", bias=True)(images.astype(self.dtype)), 0.2
        )
        for i in range(1, self.layers + 1):
            channels = self.width * min(2**i, 8)
            x = self._conv(channels, 2 if i < self.layers else 1, f"conv{i}", bias=False)(x)
            norm = nn.GroupNorm(
                math.gcd(32, channels // 4),
                epsilon=1e-5,
                dtype=jnp.float32,
                scale_init=_around_one,
                name=f"norm{i}",
            )
            x = nn.leaky_relu(norm(x), 0.2).astype(self.dtype)
        return self._conv(1, 1, "logits", bias=True)(x).astype(jnp.float32)

    def _conv(self, features: int, stride: int, name: str, bias: bool) -> Conv:
        return Conv(
            features,
            (4, 4),
            (stride, stride),
            _PAD,
            use_bias=bias,
            kernel_init=_WEIGHTS,
            dtype=self.dtype,
            name=name,
        )


def hinge_d(real_logits: Patches, fake_logits: Patches) -> Float[Array, ""]:
    """Discriminator loss 1/2 (mean relu(1 - D(real)) + mean relu(1 + D(fake)))."""
    return 0.5 * (jnp.mean(nn.relu(1 - real_logits)) + jnp.mean(nn.relu(1 + fake_logits)))


def hinge_g(fake_logits: Patches) -> Float[Array, ""]:
    """Generator loss -mean D(fake)."""
    return -jnp.mean(fake_logits)
