"""The bytes of an image file to pixels and back, for data sets, prepared sets and inpainting.

Whatever the format, pixels are uint8 (H, W, 3): the first frame, upright, on white where the image
is transparent.
"""

import contextlib
import io
import threading

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageChops, UnidentifiedImageError

# whatever the name of a file says; for some other formats Pillow would run a program
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LARGEST = 89_478_485  # pixels, Pillow's limit against decompression bombs
LONGEST = 65_535  # pixels of a side, the limit of JPEG and GIF
LARGE = 2**24  # pixels; larger images are decoded one at a time, to bound memory across threads
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # the EXIF tag

_one_large = threading.Lock()


def decode(content: bytes, largest: int = LARGEST) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image of at most `largest` pixels; its size is checked before its pixels are read.

    16-bit values keep their upper byte, and floats in [0, 1] are scaled to 0…255. Raises nearly
    any exception on broken bytes; `reason` puts it in words.
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
            # Pillow assumes Adobe's inverted inks in every CMYK JPEG file
            plain_ink = (
                image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
            )
            upright = ImageChops.invert(image) if plain_ink else image
            turn = UPRIGHT.get(_orientation(image))
            return _rgb(upright if turn is None else upright.transpose(turn))


def encode_png(image: UInt8[np.ndarray, "H W *channels"]) -> bytes:
    """Encodes a PNG file at the fastest compression level."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def reason(error: BaseException | None) -> str:
    """Describes in a few words why a file could not be read or decoded."""
    if isinstance(error, UnidentifiedImageError):  # its text contains a memory address
        return "it is empty or no image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {LARGEST:,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data does not make the image unusable
        return 1


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        grey = _eight_bits(pixels)
        if isinstance(clear := image.info.get("transparency"), int):
            grey = np.where(pixels == clear, np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=-1)
    if {"A", "a"} & {*image.getbands()} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(pixels: Num[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Converts other grey depths: floats in [0, 1] are scaled, integers or floats up to 255 are
    kept, and larger values are read as 16 bits.
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
