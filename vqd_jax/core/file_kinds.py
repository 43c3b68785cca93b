"""What a file is that is no readable image, by its first bytes."""

import contextlib
import os
import re

START = 512  # bytes that are looked at
# (pattern at the beginning, what it is)
KINDS = [
    (rb"\s*version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (rb"\s*<(!doctype|html|head)", "a web page"),
    (rb"\s*(<\?xml.*)?<svg", "an SVG drawing"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"8BPS", "a Photoshop file"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "a HEIC image"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp", "a video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\x1aE\xdf\xa3", "a video"),
    (rb"\x89PNG", "a damaged PNG image"),
    (rb"\xff\xd8", "a damaged JPEG image"),
    (rb"GIF8", "a damaged GIF image"),
    (rb"RIFF....WEBP", "a damaged WebP image"),
    (rb"II\*\0|MM\0\*", "a TIFF image of a kind that is not read, such as a camera's raw file"),
]
PLUGINS = {"a HEIC image": "pillow-heif", "a JPEG XL image": "pillow-jxl-plugin"}


def kind(content: bytes) -> str | None:
    """What the bytes are, in words; None if they are of no known kind."""
    start = content[:START]
    return next(
        (name for what, name in KINDS if re.match(what, start, re.IGNORECASE | re.DOTALL)), None
    )


def why_no_image(content: bytes) -> str:
    """The reason why bytes that Pillow does not recognise are no image, for a list."""
    name = kind(content)
    if name is None:
        return "it is empty or no image"
    if plugin := PLUGINS.get(name):
        return f"it is {name}, which needs a plug-in: pip install {plugin}"
    return f"it is {name}"


def kind_of_file(path: str | os.PathLike) -> str | None:
    """`kind` of a file's first bytes; None if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return kind(file.read(START))
    return None
