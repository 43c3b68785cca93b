"""The bytes of an image file to pixels and back, for data sets, prepared sets and inpainting.

Whatever the format, pixels are uint8 (H, W, 3): the first frame, upright, on white where the image
is transparent, in sRGB where the file has a colour profile.
"""

import contextlib
import functools
import io
import logging
import re
import threading
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import (
    AvifImagePlugin,
    Image,
    ImageChops,
    ImageCms,
    Jpeg2KImagePlugin,
    UnidentifiedImageError,
)

from vqd_jax.core import file_kinds, png

# whatever the name of a file says; for some other formats Pillow would run a program
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"),
    AvifImagePlugin.AvifImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
)
COLOURS = ("srgb", "raw")
LARGEST = 89_478_485  # pixels, Pillow's limit against decompression bombs
LONGEST = 65_535  # pixels of a side, the limit of JPEG and GIF
WORK = 2**31  # pixels of all scans of a JPEG file; usual files have one scan, or about ten
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
LARGEST_PROFILE = 2**20  # bytes, what Pillow reads of a chunk of a PNG file

T = TypeVar("T")

_one_large = threading.Lock()
_told_dark = threading.Event()


def decode(
    content: bytes, largest: int = LARGEST, colour: str = "srgb"
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image of at most `largest` pixels; its size is checked before its pixels are read.

    With `colour` "srgb", colours are converted from the file's profile to sRGB; with "raw" they
    stay as they are stored, as in the released training code.

    16-bit values keep their upper byte, and floats in [0, 1] are scaled to 0…255. Raises nearly
    any exception on broken bytes; `reason` puts it in words.
    """
    return _read(content, largest, functools.partial(pixels_of, colour=colour))


def pixels_of(image: Image.Image, colour: str = "srgb") -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an opened image, as `decode` returns them."""
    return _rgb(image, image.info.get("icc_profile") if colour == "srgb" else None)


def decode_mask(content: bytes, largest: int = LARGEST) -> Bool[np.ndarray, "H W"]:
    """Decodes a mask, see `mask_of`."""
    return _read(content, largest, mask_of)


def mask_of(image: Image.Image) -> Bool[np.ndarray, "H W"]:
    """True where an opened image is white or, if some of it is transparent, where something is
    drawn, in whatever colour.
    """
    if _has_alpha(image):
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            return alpha > 127
    return np.asarray(Image.fromarray(_rgb(image, None)).convert("L")) > 127


def _read(content: bytes, largest: int, pixels: Callable[[Image.Image], T]) -> T:
    """`pixels` of the upright image, which is closed afterwards."""
    if content.startswith(png.SIGNATURE):
        content = _without_texts(content)
    with _opened(content) as image:
        width, height = image.size
        if width * height > largest or max(image.size) > LONGEST:
            raise ValueError(
                f"it has {width:,} x {height:,} pixels; at most {largest:,} are read, and "
                f"{LONGEST:,} a side"
            )
        if not width * height:
            raise ValueError("it has no pixels")
        if image.format == "JPEG" and (scans := content.count(b"\xff\xda")) * width * height > WORK:
            raise ValueError(f"it would take too long: it has {scans:,} scans")
        with _one_large if width * height > LARGE else contextlib.nullcontext():
            image.load()
            # Pillow assumes Adobe's inverted inks in every CMYK JPEG file
            plain_ink = (
                image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
            )
            upright = ImageChops.invert(image) if plain_ink else image
            turn = UPRIGHT.get(_orientation(image))
            return pixels(upright if turn is None else upright.transpose(turn))


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """FORMATS, and those of the plug-ins for Pillow that are installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

        register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # type: ignore[import-not-found]  # noqa: F401
    return FORMATS + tuple(name for name in ("HEIF", "JXL") if name in Image.OPEN)


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=readable_formats())
    except UnidentifiedImageError as error:
        raise ValueError(file_kinds.why_no_image(content)) from error


def _without_texts(content: bytes) -> bytes:
    """A PNG file without texts, and without a huge profile, which Pillow refuses together with the
    image.
    """
    kept = [png.SIGNATURE]
    for kind, data, chunk in png.chunks(content):
        huge = kind == b"iCCP" and _inflates(data.partition(b"\0")[2][1:], LARGEST_PROFILE)
        if kind not in (b"tEXt", b"zTXt", b"iTXt") and not huge:
            kept.append(chunk)
    return b"".join(kept)


def _inflates(data: bytes, limit: int) -> bool:
    """Whether compressed data have more than `limit` bytes."""
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        return len(stream.decompress(data, limit + 1)) > limit
    return False


def encode_png(image: UInt8[np.ndarray, "H W *channels"]) -> bytes:
    """Encodes a PNG file at the fastest compression level."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def reason(error: BaseException | None) -> str:
    """Describes in a few words why a file could not be read or decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {LARGEST:,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data does not make the image unusable
        return 1


def _has_alpha(image: Image.Image) -> bool:
    return bool({"A", "a"} & {*image.getbands()}) or "transparency" in image.info


def _rgb(image: Image.Image, profile: bytes | None) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        grey = _eight_bits(pixels)
        if isinstance(clear := image.info.get("transparency"), int):
            grey = np.where(pixels == clear, np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=-1)
    if _has_alpha(image):
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        image = _in_srgb(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The image with the colours of its profile in sRGB; as it is, if the profile is damaged or is
    not one for its channels.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        if "srgb" in re.sub(r"\W", "", ImageCms.getProfileDescription(source)).lower():
            return image
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        if mode != image.mode and (alpha is None or mode == "CMYK"):
            return image
        colours = image if mode == image.mode else image.convert(mode)
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError):
        return image
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted or image


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
    if 255 < high < 4096 and not _told_dark.is_set():
        _told_dark.set()
        logging.warning(
            "a grey image of 16 bits has values up to %d only: they are read as 16 bits, so that "
            "values of 12 bits become dark; scale them up first",
            int(high),
        )
    return (pixels.astype(np.uint16) >> 8).astype(np.uint8)
