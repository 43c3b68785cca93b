"""Seven colour words and the hues they stand for: the main colour of an image, and turning its hues
into those of another colour.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
HUES = (0.0, 28.0, 52.0, 115.0, 212.0, 272.0, 322.0)  # degrees of a typical colour of each word
# degrees where each colour ends and the next one begins; above the last edge it is red again
EDGES = (15.0, 42.0, 70.0, 165.0, 250.0, 295.0, 345.0)
SATURATION, VALUE = 0.3, 0.25  # a pixel counts as coloured above both
FEWEST = 0.03  # the share of coloured pixels below which an image has no colour

Image = UInt8[np.ndarray, "H W 3"]
Channel = Float[np.ndarray, "H W"]


class Colour(NamedTuple):
    """The main colour of an image.

    Attributes:
      index: of COLOURS; -1 if fewer than FEWEST of the pixels are coloured.
      share: of that colour in the saturation times value of all coloured pixels.
      saturated: the share of coloured pixels.
      hue: the mean hue of the colour, in degrees.
    """

    index: int
    share: float
    saturated: float
    hue: float


def hsv(image: Image) -> tuple[Channel, Channel, Channel]:
    """Hue in degrees [0, 360), saturation and value in [0, 1]; the hue of a grey pixel is 0."""
    pixels = image.astype(np.float32) / 255
    red, green, blue = np.moveaxis(pixels, -1, 0)
    value, low = pixels.max(-1), pixels.min(-1)
    spread = value - low
    divisor = np.where(spread == 0, 1, spread)
    sextant = np.select(
        [spread == 0, value == red, value == green],
        [0, (green - blue) / divisor, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    return sextant % 6 * 60, spread / np.where(value == 0, 1, value), value


def rgb(hue: Channel, saturation: Channel, value: Channel) -> Image:
    """The inverse of `hsv`; hues may lie outside [0, 360)."""
    offset = np.array([5, 3, 1], np.float32)  # of red, green and blue
    position = (offset + hue[..., None] / 60) % 6
    ramp = np.clip(np.minimum(position, 4 - position), 0, 1)
    out = value[..., None] * (1 - saturation[..., None] * ramp)
    return np.clip(np.rint(out * 255), 0, 255).astype(np.uint8)


def classify(hue: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The index in COLOURS of hues in degrees [0, 360)."""
    return np.searchsorted(EDGES, hue, side="right") % len(COLOURS)


def colour_of(image: Image) -> Colour:
    """The main colour of an image: the word whose hues carry most of its saturation times value."""
    hue, saturation, value = hsv(image)
    coloured = (saturation > SATURATION) & (value > VALUE)
    saturated = float(coloured.mean())
    if saturated < FEWEST:
        return Colour(-1, 0.0, saturated, 0.0)
    hue, weight = hue[coloured].astype(np.float64), (saturation * value)[coloured]
    classes = classify(hue)
    totals = np.bincount(classes, weights=weight, minlength=len(COLOURS))
    index = int(totals.argmax())
    mine = classes == index
    angle = np.angle(np.sum(weight[mine] * np.exp(1j * np.deg2rad(hue[mine]))))
    return Colour(
        index, float(totals[index] / totals.sum()), saturated, float(np.rad2deg(angle) % 360)
    )


def turn(image: Image, degrees: float) -> Image:
    """The image with all its hues turned by that angle; greys stay."""
    hue, saturation, value = hsv(image)
    return rgb(hue + degrees, saturation, value)
