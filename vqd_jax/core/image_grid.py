"""Grids of images as uint8 arrays, with captions below them, and PNG files with metadata."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, PngImagePlugin

from vqd_jax.core import captions as captions_
from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = UInt8[np.ndarray, "b H W 3"]
Sheet = UInt8[np.ndarray, "height width 3"]

CAPTION_WIDTH = 96  # pixels: the least width of an image with a caption
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WHITE = 255


def grid(
    images: Images,
    columns: int,
    *,
    captions: Sequence[str] | None = None,
    scale: int = 1,
    gap: int = 2,
) -> Sheet:
    """The images in rows of `columns` on white, each enlarged `scale` times, with captions wrapped
    to their width. With captions, small images are enlarged further, by an integer factor.

    What no font has of a caption becomes the number of the image; see `caption_metadata`.
    """
    n, h, w, _ = images.shape
    if n == 0 or columns < 1 or scale < 1 or gap < 0:
        raise UserError(
            f"a grid needs an image, a column, a scale of at least 1 and no negative gap, "
            f"got {n} images, {columns} columns, scale {scale}, gap {gap}"
        )
    if captions is not None and len(captions) != n:
        raise UserError(f"a grid needs one caption per image, got {len(captions)} for {n}")
    if captions is not None:
        scale = max(scale, -(-CAPTION_WIDTH // w))
        gap = max(gap, 6)  # separates the captions of neighbours
    h, w = h * scale, w * scale
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(columns, n)
    rows = -(-n // columns)
    laid_out = [
        captions_.layout(text, w, f"image {i}") for i, text in enumerate(captions or (), start=1)
    ]
    line_height = max((caption.line_height for caption in laid_out), default=captions_.LINE)
    texts = [caption.lines for caption in laid_out] or [[]] * n
    row_of_texts = [texts[r * columns : (r + 1) * columns] for r in range(rows)]
    heights = [
        h + line_height * max(map(len, row)) + (4 if any(row) else 0) for row in row_of_texts
    ]
    sheet = Image.new(
        "RGB", (columns * (w + gap) + gap, sum(heights) + (rows + 1) * gap), (WHITE,) * 3
    )
    draw = ImageDraw.Draw(sheet)
    for i in range(n):
        r, c = divmod(i, columns)
        x, y = gap + c * (w + gap), gap + sum(heights[:r]) + r * gap
        sheet.paste(Image.fromarray(images[i]), (x, y))
        for k, line in enumerate(texts[i]):
            captions_.draw_line(draw, x + w // 2, y + h + 2 + k * line_height, line)
    return np.array(sheet)


def caption_metadata(captions: Sequence[str], key: str = "captions") -> dict[str, str]:
    """The captions for a PNG's text, if a grid cannot show all of their words; else {}."""
    complete = all(captions_.layout(text, CAPTION_WIDTH, "").complete for text in captions)
    return {} if complete else {key: json.dumps([*captions], ensure_ascii=False)}


def side_by_side(
    originals: Images,
    reconstructions: Images,
    *,
    columns: int = 8,
    scale: int = 1,
    gap: int = 2,
) -> Sheet:
    """Rows of originals, each above the row of its reconstructions."""
    columns = min(columns, len(originals))
    pad = np.full((-len(originals) % columns, *originals.shape[1:]), WHITE, np.uint8)
    in_rows = lambda x: np.concatenate([x, pad]).reshape(-1, columns, *x.shape[1:])
    both = np.stack([in_rows(originals), in_rows(reconstructions)], axis=1)
    return grid(both.reshape(-1, *originals.shape[1:]), columns, scale=scale, gap=gap)


def save_png(
    path: str | os.PathLike, image: Sheet, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a PNG file atomically, with `metadata` as its text; parent folders are created."""
    content = png_bytes(image, metadata)  # in memory, as Pillow hides why a file cannot be written
    with atomic_write(as_path(path), "the picture") as part:
        part.write_bytes(content)


def save_picture(path: str | os.PathLike, image: Sheet, metadata: Mapping[str, str]) -> None:
    """`save_png`, or a JPEG or WebP file without the metadata, by the ending of the name."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        save_png(path, image, metadata)
        return
    content = io.BytesIO()
    Image.fromarray(image).save(content, FORMATS[ending], quality=95)
    with atomic_write(as_path(path), "the picture") as part:
        part.write_bytes(content.getvalue())


def png_bytes(image: Sheet, metadata: Mapping[str, str] | None = None) -> bytes:
    """A PNG file in memory, with `metadata` as its text."""
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)  # UTF-8
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def save_figure(figure: "Figure", path: Path, what: str = "the picture") -> None:
    """Writes a matplotlib figure atomically, in the format of the file's suffix. `what` names it in
    the error.
    """
    content = io.BytesIO()
    try:
        figure.savefig(
            content, format=path.suffix[1:] or None, dpi=120, metadata={"Software": "vqd_jax"}
        )
    except ValueError as error:  # an unknown format
        raise UserError(f"cannot write {what} {path}: {error}") from error
    with atomic_write(path, what) as part:
        part.write_bytes(content.getvalue())
