"""Bytes of an image file → pixels, in one place for data sets, packs and pictures to be edited.

Whatever the file says of itself, the result is uint8 (H, W, 3): the first frame, upright, on white
where it is transparent.
"""

import contextlib
import io
import threading
import warnings

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # whatever a file's name; Pillow would run a program for some others
LARGEST = 89_478_485  # pixels, Pillow's own limit: more is taken for a decompression bomb
LONGEST = 65_535  # pixels, of a side, as in JPEG and GIF
LARGE = (
    2**24
)  # pixels: such pictures are decoded one at a time, or sixteen threads would fill the memory
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # of EXIF

_one_large = threading.Lock()
warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # of what is decoded all the same, or refused with a reason


def decode(content: bytes, largest: int = LARGEST) -> np.ndarray:
    """The picture in an image file of FORMATS, uint8 (H, W, 3), with at most `largest` pixels.

    16 bits keep their upper byte, floats from 0 to 1 become 0 to 255. Raises: nearly anything, on
    broken bytes; see `reason`.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > largest or max(image.size) > LONGEST:
            raise ValueError(
                f"it has {width:,} x {height:,} pixels; at most {largest:,} are read, and "
                f"{LONGEST:,} a side"
            )
        if not width * height:
            raise ValueError("it has no pixels")
        with _one_large if width * height > LARGE else contextlib.nullcontext():
            image.load()
            ink = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
            upright = (
                ImageChops.invert(image) if ink else image
            )  # Pillow takes every one for Adobe's, which are inverted
            turn = UPRIGHT.get(_orientation(image))
            return _rgb(upright if turn is None else upright.transpose(turn))


def reason(error: BaseException) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its text has an address in memory
        return "it is empty or no image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {LARGEST:,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # broken EXIF data says nothing about the picture
        return None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        grey = _eight_bits(pixels)
        if isinstance(clear := image.info.get("transparency"), int):
            grey = np.where(pixels == clear, np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=-1)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Grey of other depths: 16 bits by the upper byte; of 32 bits or floats, from 0 to 255 as they
    are, more as 16 bits.
    """
    low, high = pixels.min(), pixels.max()
    if not (0 <= low and high <= 65535):
        raise ValueError(
            f"its values go from {low:g} to {high:g}; grey of 8 or 16 bits is read, or floats "
            "from 0 to 1"
        )
    if pixels.dtype.kind == "f" and high <= 1:
        return np.rint(255 * pixels).astype(np.uint8)
    if pixels.dtype.itemsize > 2 and high <= 255:
        return pixels.astype(np.uint8)
    return (pixels.astype(np.uint16) >> 8).astype(np.uint8)
