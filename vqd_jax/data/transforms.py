"""Image to square image, uint8 to uint8: the deterministic one for evaluation and caches, the random one for training.

Both resample once, with Pillow's antialiased bicubic filter, straight from the cropped box.
"""

import dataclasses

import numpy as np
from PIL import Image

from vqd_jax.errors import UserError


def _resample(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    if image.shape[:2] == (size, size) and box == (0, 0, size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))


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
        return _resample(image, _square((width - side) / 2, (height - side) / 2, float(side)), self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A random square near the centre, to `size`.

    Its side is the shorter side times a uniform draw from [scale, 1]; its centre moves by at most `shift` of the free
    room in each direction (0 keeps it centred, 1 lets it touch the border). Without an rng it is `Resize`.
    """

    size: int
    scale: float = 0.9
    shift: float = 1.0
    flip: bool = False

    def __post_init__(self):
        if self.size < 1 or not 0 < self.scale <= 1 or not 0 <= self.shift <= 1:
            raise UserError(f"RandomCrop takes size ≥ 1, scale in (0, 1] and shift in [0, 1], not {self}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        if rng is None:
            return Resize(size=self.size)(image)
        height, width = image.shape[:2]
        draw = rng.random(4)
        side = min(height, width) * (1 - (1 - self.scale) * draw[0])
        left, top = ((room - side) / 2 * (1 + self.shift * (2 * u - 1)) for room, u in zip((width, height), draw[1:3]))
        out = _resample(image, _square(left, top, side), self.size)
        return np.ascontiguousarray(out[:, ::-1]) if self.flip and draw[3] < 0.5 else out
