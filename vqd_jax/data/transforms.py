"""Image to square image, uint8 to uint8: the deterministic one for evaluation and caches, the
random ones for training.

All resample once, with Pillow's antialiased bicubic filter; `Resize` and `RandomCrop` straight from
the cropped box, `Reference` as the released PyTorch code did it.
"""

import dataclasses

import numpy as np
from PIL import Image

from vqd_jax.core.errors import UserError

# times as long as wide: of longer pictures `Reference` scales the middle only, or a strip would
# fill the memory
LONG = 32


def _resample(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    if image.shape[:2] == (size, size) and box == (0, 0, size, size):
        return image
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    )


def _square(left: float, top: float, side: float) -> tuple[float, float, float, float]:
    return left, top, left + side, top + side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """Shorter side to `size`, then the centre square; rng is not used."""

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"The image size must be positive, not {self.size}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        height, width = image.shape[:2]
        side = min(height, width)
        return _resample(
            image, _square((width - side) / 2, (height - side) / 2, float(side)), self.size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A random square near the centre, to `size`.

    Its side is the shorter side times a uniform draw from [scale, 1]; its centre moves by at most
    `shift` of the free room in each direction (0 keeps it centred, 1 lets it touch the border).
    Without an rng it is `Resize`.
    """

    size: int
    scale: float = 0.9
    shift: float = 1.0
    flip: bool = False

    def __post_init__(self):
        if self.size < 1 or not 0 < self.scale <= 1 or not 0 <= self.shift <= 1:
            raise UserError(
                f"RandomCrop takes size ≥ 1, scale in (0, 1] and shift in [0, 1], not {self}."
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
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
    """The transform of the published models, in training with an rng and in evaluation without one;
    nothing is mirrored.

    Training: of the free room d = h - s, w - s a square of the shorter side s starts at a uniform
    whole number in [3d // 8, max(3d // 8 + 1, 5d // 8)); it becomes t × t, t uniform in [size,
    max(size, min(s, 9 size // 8))], which are 288 of 256; of that, any `size` × `size`. Evaluation:
    shorter side to `size`, the longer one rounded down, then the centre.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"The image size must be positive, not {self.size}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        size, (height, width) = self.size, image.shape[:2]
        side = min(height, width)
        if rng is None:
            top, left = (max(d - LONG * side, 0) // 2 for d in (height, width))
            image = image[top : top + LONG * side, left : left + LONG * side]
            height, width = image.shape[:2]
            scaled = _scaled(image, height * size // side, width * size // side)
            return self._cut(scaled, (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2)
        top, left = (
            int(rng.integers(3 * d // 8, max(3 * d // 8 + 1, 5 * d // 8)))
            for d in (height - side, width - side)
        )
        t = int(rng.integers(size, max(size, min(side, 9 * size // 8)) + 1))
        scaled = _scaled(image[top : top + side, left : left + side], t, t)
        return self._cut(scaled, *map(int, rng.integers(0, t - size + 1, 2)))

    def _cut(self, image: np.ndarray, top: int, left: int) -> np.ndarray:
        return np.ascontiguousarray(image[top : top + self.size, left : left + self.size])


def _scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    )
