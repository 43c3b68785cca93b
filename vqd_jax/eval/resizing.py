"""Resizing exactly as published metrics do it; FID values differ by the kernel alone (Parmar et al.
2022).

All kernels are separable: out = R x C^T for each channel, with two small matrices R and C.

| convention | kernel | used by |
|---|---|---|
| pytorch-fid | bilinear, half-pixel centres, not antialiased | pytorch-fid |
| tf-legacy | bilinear, aligned at the first corner, not antialiased | torch-fidelity, first FID |
| clean | bicubic, antialiased, on float32, clipped to [0, 255] | clean-fid |

They are `F.interpolate(align_corners=False)`, TensorFlow 1's `resize_bilinear` and Pillow's mode F.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from vqd_jax.core.errors import UserError

_BITS = 22  # fraction bits of Pillow's fixed-point weights

Matrix = Float[np.ndarray, "new old"]


def resize(
    images: Float[Array, "b H W c"], size: tuple[int, int], convention: str
) -> Float[Array, "b _ _ c"]:
    """Resizes to (height, width) = size, float32. Values may have any range, but `clean` clips them
    to [0, 255].
    """
    if convention not in CONVENTIONS:
        raise UserError(
            f"there is no resizing convention {convention!r}, only {', '.join(CONVENTIONS)}"
        )
    rows, columns = (
        CONVENTIONS[convention](old, new).astype(np.float32)
        for old, new in zip(images.shape[1:3], size, strict=True)
    )
    x = jnp.einsum("xw,bhwc->bhxc", columns, images, precision=jax.lax.Precision.HIGHEST)
    x = jnp.einsum("yh,bhxc->byxc", rows, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(x, 0, 255) if convention == "clean" else x


def bicubic_bytes(
    images: UInt8[Array, "b H W c"], size: tuple[int, int]
) -> UInt8[Array, "b _ _ c"]:
    """Equals Pillow's `resize(size, BICUBIC)` of uint8 images bit for bit: fixed-point weights, and
    rounding to uint8 after each direction.
    """
    x = images
    for axis, (old, new) in ((2, (images.shape[2], size[1])), (1, (images.shape[1], size[0]))):
        if old != new:
            weights = _fixed_point(pillow_bicubic(old, new))
            x = jnp.einsum(
                "xw,bhwc->bhxc" if axis == 2 else "yh,bhwc->bywc", weights, x.astype(jnp.int32)
            )
            x = jnp.clip((x + 2 ** (_BITS - 1)) >> _BITS, 0, 255).astype(jnp.uint8)
    return x


def clip_transform(images: UInt8[Array, "b H W c"], size: int) -> UInt8[Array, "b _ _ c"]:
    """CLIP's transform as published by OpenAI: Pillow's bicubic resize of the shorter side to
    `size` pixels, then a centre crop.
    """
    height, width, top, left = _clip_layout(images.shape[1:3], size)
    return bicubic_bytes(images, (height, width))[:, top : top + size, left : left + size]


def resize_clean_one(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> Float[np.ndarray, "h w 3"]:
    """`resize` of one image by the convention clean, on the host."""
    channels = [
        Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC)
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack(channels, axis=-1).clip(0, 255)


def clip_transform_one(
    image: UInt8[np.ndarray, "H W 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """`clip_transform` of one image, on the host."""
    height, width, top, left = _clip_layout(image.shape[:2], size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[top : top + size, left : left + size]


def _clip_layout(shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Height and width of the resized image, top and left of the crop."""
    height, width = (int(size * side / min(shape)) for side in shape)
    return height, width, round((height - size) / 2), round((width - size) / 2)


def torch_bilinear(old: int, new: int) -> Matrix:
    centres = np.maximum(
        (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)
        - np.float32(0.5),
        0,
    )
    return _bilinear(centres, old)


def tensorflow_bilinear(old: int, new: int) -> Matrix:
    return _bilinear(np.arange(new, dtype=np.float32) * np.float32(old / new), old)


def pillow_bicubic(old: int, new: int) -> Matrix:
    """The cubic kernel with a = -1/2, stretched to the width of an output pixel when shrinking."""
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    first = np.maximum((centres - 2 * wide + 0.5).astype(int), 0)
    last = np.minimum((centres + 2 * wide + 0.5).astype(int), old)
    pixels = np.arange(old)[None]
    x = np.abs((pixels - centres + 0.5) / wide)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0)) * ((first <= pixels) & (pixels < last))
    return weights / weights.sum(axis=1, keepdims=True)


def _bilinear(centres: Float[np.ndarray, " new"], old: int) -> Matrix:
    low = np.minimum(centres.astype(int), old - 1)
    weights, rows, fraction = (
        np.zeros((len(centres), old)),
        np.arange(len(centres)),
        centres - low.astype(np.float32),
    )
    weights[rows, low] = 1 - fraction
    weights[rows, np.minimum(low + 1, old - 1)] += fraction
    return weights


def _fixed_point(weights: Matrix) -> Int[np.ndarray, "new old"]:
    return np.trunc(weights * 2**_BITS + np.copysign(0.5, weights)).astype(np.int32)


CONVENTIONS: dict[str, Callable[[int, int], Matrix]] = {
    "pytorch-fid": torch_bilinear,
    "tf-legacy": tensorflow_bilinear,
    "clean": pillow_bicubic,
}
