"""Transforms of an image to a square image, uint8 to uint8: random for training, deterministic for
evaluation and caches.

All use Pillow's antialiased bicubic filter. `Resize` and `RandomCrop` resample once, directly from
the cropped box; `Reference` follows the released PyTorch code.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqd_jax.core.errors import UserError

Pixels = UInt8[np.ndarray, "H W 3"]
Square = UInt8[np.ndarray, "size size 3"]

LONGEST_RATIO = 32  # of length to width: of longer images `Reference` scales the middle only


@runtime_checkable
class Transform(Protocol):
    """Maps an image to `size` × `size` pixels; random given a generator, deterministic without."""

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Square: ...


@runtime_checkable
class SizedTransform(Transform, Protocol):
    """A transform that tells the side of its squares, in pixels."""

    @property
    def size(self) -> int: ...


def _resample(image: Pixels, box: tuple[float, float, float, float], size: int) -> Square:
    if image.shape[:2] == (size, size) and box == (0, 0, size, size):
        return image
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    )


def _square(left: float, top: float, side: float) -> tuple[float, float, float, float]:
    return left, top, left + side, top + side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """Scales the shorter side to `size` and takes the centre square; ignores `rng`."""

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"the image size must be positive, got {self.size}")

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Square:
        height, width = image.shape[:2]
        side = min(height, width)
        return _resample(
            image, _square((width - side) / 2, (height - side) / 2, float(side)), self.size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Scales a random square near the centre to `size`.

    The side of the square is the shorter side times a uniform draw from [scale, 1]. Its centre
    moves by at most `shift` of the margin in each direction: 0 keeps it centred, 1 lets it touch
    the border. Without a generator it is `Resize`.
    """

    size: int
    scale: float = 0.9
    shift: float = 1.0
    flip: bool = False

    def __post_init__(self):
        if self.size < 1 or not 0 < self.scale <= 1 or not 0 <= self.shift <= 1:
            raise UserError(
                f"RandomCrop takes size ≥ 1, scale in (0, 1] and shift in [0, 1]; got {self}"
            )

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Square:
        if rng is None:
            return Resize(size=self.size)(image)
        height, width = image.shape[:2]
        draw = rng.random(4)
        side = min(height, width) * (1 - (1 - self.scale) * draw[0])
        left, top = (
            (room - side) / 2 * (1 + self.shift * (2 * u - 1))
            for room, u in zip((width, height), draw[1:3])
        )
        out = _resample(image, _square(left, top, side), self.size)
        return np.ascontiguousarray(out[:, ::-1]) if self.flip and draw[3] < 0.5 else out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The transform of the published models: for training with a generator, for evaluation without.

    Training: for a shorter side s and a margin d (h - s and w - s), takes a square of side s at a
    uniform integer offset in [3d // 8, max(3d // 8 + 1, 5d // 8)); scales it to t × t, with t
    uniform in [size, max(size, min(s, 9 size // 8))], at most 288 for size 256; and takes a uniform
    `size` × `size` crop. Evaluation: scales the shorter side to `size` (the longer one is rounded
    down) and takes the centre. Neither mirrors.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"the image size must be positive, got {self.size}")

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Square:
        size, (height, width) = self.size, image.shape[:2]
        side = min(height, width)
        if rng is None:
            longest = LONGEST_RATIO * side
            top, left = (max(d - longest, 0) // 2 for d in (height, width))
            image = image[top : top + longest, left : left + longest]
            height, width = image.shape[:2]
            scaled = _scaled(image, height * size // side, width * size // side)
            return self._crop(scaled, (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2)
        top, left = (
            int(rng.integers(3 * d // 8, max(3 * d // 8 + 1, 5 * d // 8)))
            for d in (height - side, width - side)
        )
        t = int(rng.integers(size, max(size, min(side, 9 * size // 8)) + 1))
        scaled = _scaled(image[top : top + side, left : left + side], t, t)
        return self._crop(scaled, *map(int, rng.integers(0, t - size + 1, 2)))

    def _crop(self, image: Pixels, top: int, left: int) -> Square:
        return np.ascontiguousarray(image[top : top + self.size, left : left + self.size])


def _scaled(image: Pixels, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    )
