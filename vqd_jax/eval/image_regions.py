"""Parts of images: halves, and what is not background."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqd_jax.data.emoji_looks import ink_box
from vqd_jax.data.source import Items

Pixels = UInt8[np.ndarray, "_ _ 3"]


def half(image: Pixels, side: int) -> Pixels:
    """The left (0) or right (1) half of an image."""
    middle = image.shape[1] // 2
    return image[:, middle:] if side else image[:, :middle]


def trimmed(image: Pixels, size: int) -> Pixels:
    """What the image shows on white, as large as it fits into a square of `size` pixels."""
    if shown := ink_box(image):
        left, top, right, bottom = shown
        image = image[top:bottom, left:right]
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    out = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    out[top : top + height, left : left + width] = np.asarray(resized)
    return out


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Images of which each is changed by a function."""

    images: Items
    change: Callable[[Pixels], Pixels]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Pixels:
        return self.change(self.images[i])
