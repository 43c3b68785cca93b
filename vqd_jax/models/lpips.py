"""LPIPS, the learned perceptual distance of Zhang et al. 2018 (arXiv:1801.03924), on the features
of VGG16 or AlexNet.

d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x)/|f_l(x)| - f_lc(y)/|f_l(y)|)^2; all weights are frozen:
gradients reach the inputs only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Images
from vqd_jax.models.products import convolve, has_fast_products

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
ALEX = (  # channels, kernel, stride, padding
    (64, 11, 4, 2),
    (192, 5, 1, 2),
    (384, 3, 1, 1),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
)
# In pixels, for four poolings, and for a convolution of stride 4 and two poolings
SMALLEST = {"vgg": 16, "alex": 31}
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Images of at most this number of pixels use a matrix product: at 2x2, XLA's convolution takes 100
# times as long on a CPU.
_SMALL = 16
_NORM_FLOOR = 1e-20  # under the root, so that the gradient of a pixel without features is finite

Pyramid = tuple[Float[Array, "b _ _ _"], ...]


class FrozenConv(nn.Module):
    """Convolution whose weights get no gradient."""

    features: int
    dtype: DTypeLike = jnp.float32
    size: int = 3
    stride: int = 1
    padding: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b _ _ _"]:
        kernel = self.param(
            "kernel",
            nn.initializers.he_normal(),
            (self.size, self.size, x.shape[-1], self.features),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = (lax.stop_gradient(p).astype(self.dtype) for p in (kernel, bias))
        H, W = x.shape[1:3]
        same = (self.size, self.stride, self.padding) == (3, 1, 1)
        if same and (H * W <= _SMALL or has_fast_products(x.dtype)):
            y = convolve(x, kernel)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride,) * 2,
                ((self.padding,) * 2,) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return y + bias[None, None, None]


class VGG16(nn.Module):
    """The convolutions of VGG16: images in [-1, 1] -> (relu1_2, relu2_2, relu3_3, relu4_3,
    relu5_3).
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Pyramid:
        x = _standard(x, "VGG16", SMALLEST["vgg"]).astype(self.dtype)
        taps = []
        for i, widths in enumerate(BLOCKS, start=1):
            if i > 1:
                x = _halve(x)
            for j, width in enumerate(widths, start=1):
                x = nn.relu(FrozenConv(width, self.dtype, name=f"conv{i}_{j}")(x))
            taps.append(x)
        return tuple(taps)


class AlexNet(nn.Module):
    """The convolutions of AlexNet: images in [-1, 1] -> (relu1, relu2, relu3, relu4, relu5)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Pyramid:
        x = _standard(x, "AlexNet", SMALLEST["alex"]).astype(self.dtype)
        taps = []
        for i, (width, *shape) in enumerate(ALEX, start=1):
            if i in (2, 3):
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(FrozenConv(width, self.dtype, *shape, name=f"conv{i}")(x))
            taps.append(x)
        return tuple(taps)


NETS = {"vgg": VGG16, "alex": AlexNet}


class LPIPS(nn.Module):
    """Distance of each pair of images in [-1, 1]: 0 for equal images, below 0.1 for a slight blur,
    near 1 for noise.

    Attributes:
      upsample: factor by which both images are enlarged bilinearly first (the networks were trained
        on 224 pixels).
      net: "vgg", as in most losses, or "alex", as in most published tables.
    """

    upsample: int = 1
    dtype: DTypeLike = jnp.float32
    net: str = "vgg"

    @nn.compact
    def __call__(self, x: Images, y: Images) -> Float[Array, " b"]:
        network = NETS[self.net](self.dtype, name=self.net)
        # Two calls, not one on the concatenation: in training only one image needs a backward pass.
        pyramids = zip(
            network(_enlarge(x, self.upsample)), network(_enlarge(y, self.upsample)), strict=True
        )
        distance = jnp.zeros(x.shape[0], jnp.float32)
        for i, (f, g) in enumerate(pyramids, start=1):
            head = lax.stop_gradient(self.param(f"head{i}", nn.initializers.ones, (f.shape[-1],)))
            difference = jnp.square(_unit(f) - _unit(g))
            distance += jnp.einsum("bhwc,c->b", difference, head) / (f.shape[1] * f.shape[2])
        return distance


def vgg_features(pyramid: Pyramid) -> Float[Array, "b 512"]:
    """Global average of relu5_3, the features of the VGG-KID."""
    return jnp.mean(pyramid[-1].astype(jnp.float32), axis=(1, 2))


def _standard(x: Images, network: str, least: int) -> Images:
    """Images as the networks were trained on; UserError if they are smaller than `least`."""
    if min(x.shape[1:3]) < least:
        raise UserError(
            f"{network} needs images of at least {least} pixels a side, got "
            f"{x.shape[1]}x{x.shape[2]}"
        )
    shift, scale = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (_SHIFT, _SCALE))
    return (x.astype(jnp.float32) - shift) / scale


def _enlarge(x: Images, factor: int) -> Float[Array, "b _ _ 3"]:
    if factor == 1:
        return x
    b, H, W, c = x.shape
    return jax.image.resize(x, (b, factor * H, factor * W, c), "bilinear")


def _halve(x: Float[Array, "b H W c"]) -> Float[Array, "b _ _ c"]:
    """2x2 maximum of stride 2, in pairs: the backward pass of `nn.max_pool` takes 30 times as long
    on a CPU.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _unit(f: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    f = f.astype(jnp.float32)
    return f * lax.rsqrt(jnp.sum(jnp.square(f), axis=-1, keepdims=True) + _NORM_FLOOR)
