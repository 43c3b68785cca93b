"""Seven colour words and the hues they stand for: the main colour of an image, and turning its hues
into those of another colour.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
HUES = (0.0, 28.0, 52.0, 115.0, 212.0, 272.0, 322.0)  # degrees of a typical colour of each word
# degrees where each colour ends and the next one begins; above the last edge it is red again
EDGES = (15.0, 42.0, 70.0, 165.0, 250.0, 295.0, 345.0)
SATURATION, VALUE = 0.3, 0.25  # a pixel counts as coloured above both
FEWEST = 0.03  # the share of coloured pixels below which an image has no colour

Image = UInt8[np.ndarray, "H W 3"]
Pixels = UInt8[np.ndarray, "*shape 3"]
Channel = Float[np.ndarray, "*shape"]


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


def hsv(pixels: Pixels) -> tuple[Channel, Channel, Channel]:
    """Hue in degrees [0, 360), saturation and value in [0, 1]; the hue of a grey pixel is 0."""
    red, green, blue = (pixels[..., i].astype(np.float32) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.maximum(spread, 1)
    sextant = np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sextant = np.where(value == red, (green - blue) / divisor, sextant)
    sextant += 6 * (sextant < 0)
    return np.where(spread > 0, sextant * 60, 0), spread / np.maximum(value, 1), value / 255


def rgb(hue: Channel, saturation: Channel, value: Channel) -> Pixels:
    """The inverse of `hsv`; hues may lie outside [0, 360)."""
    sextant, full = hue / 60 % 6, value * 255
    drop = full * saturation
    out = np.empty((*hue.shape, 3), np.uint8)
    for i, offset in enumerate((5, 3, 1)):  # of red, green and blue
        position = sextant + offset
        position -= 6 * (position >= 6)
        out[..., i] = np.rint(full - drop * np.clip(np.minimum(position, 4 - position), 0, 1))
    return out


def classify(hue: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The index in COLOURS of hues in degrees [0, 360)."""
    return np.searchsorted(EDGES, hue, side="right") % len(COLOURS)


def is_coloured(saturation: Channel, value: Channel) -> Bool[np.ndarray, "*shape"]:
    """Which pixels count as coloured."""
    return (saturation > SATURATION) & (value > VALUE)


def colour_of(image: Image) -> Colour:
    """The main colour of an image: the word whose hues carry most of its saturation times value."""
    return main_colour(*hsv(image))


def main_colour(hue: Channel, saturation: Channel, value: Channel) -> Colour:
    """`colour_of` the image with these channels."""
    coloured = is_coloured(saturation, value)
    saturated = float(coloured.mean())
    if saturated < FEWEST:
        return Colour(-1, 0.0, saturated, 0.0)
    hues, weight = hue[coloured].astype(np.float64), (saturation * value)[coloured]
    classes = classify(hues)
    totals = np.bincount(classes, weights=weight, minlength=len(COLOURS))
    index = int(totals.argmax())
    mine = classes == index
    angle = np.angle(np.sum(weight[mine] * np.exp(1j * np.deg2rad(hues[mine]))))
    return Colour(
        index, float(totals[index] / totals.sum()), saturated, float(np.rad2deg(angle) % 360)
    )


def turn(image: Image, degrees: float) -> Image:
    """The image with all its hues turned by that angle; greys stay."""
    out = image.copy()
    coloured = (image[..., 0] != image[..., 1]) | (image[..., 0] != image[..., 2])
    hue, saturation, value = hsv(image[coloured])
    out[coloured] = rgb(hue + np.float32(degrees), saturation, value)
    return out
