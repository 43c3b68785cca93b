"""A set of image files packed into few large ones, each picture checked and, where that loses
nothing, made small once.

For the transform `resize` the pack holds the finished squares as PNG. Crops start from the whole
picture, so for them it holds the bytes of the files as they are: then it spares millions of small
files, but no decoding. What cannot be decoded is left out, up to 1 % (half of a folder of one's
own). The pack is made in parts; a killed run goes on with the first part that is not whole.
"""

import functools
import io
import json
import logging
import operator
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record
from vqd_jax.data.files import Files, prefetch, printable, summarise
from vqd_jax.data.images import decode, reason
from vqd_jax.data.source import fingerprint
from vqd_jax.data.transforms import Resize
from vqd_jax.runtime.progress import Bar, bar

PART = 5_000  # pictures


class Packed:
    """A source that reads the pack of another one; records of pictures that could not be decoded
    are gone.
    """

    def __init__(self, source: Files, parts: list[pathlib.Path], broken: dict[str, str]):
        kept = source.without(broken)
        self.records, self.fingerprint, self.skipped = kept.records, kept.fingerprint, kept.skipped
        self.root = parts[0].parents[1]
        self.pictures = len(kept.pictures())
        self._parts, self._stored = parts, [array_record.read(part, decode=False) for part in parts]
        self._starts = np.cumsum([0, *map(len, self._stored)])
        rows = {file: row for row, file in enumerate(kept.pictures())}
        if self.pictures != self._starts[-1]:
            raise UserError(
                f"The prepared data set in {self.root} holds {self._starts[-1]} pictures, not "
                f"{self.pictures}: "
                "delete that folder and it is made again."
            )
        self.files, self._rows = kept.files, [rows[file] for file in kept.files]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._rows[i]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        with array_record.damage(self._parts[part]):
            content = self._stored[part][row - int(self._starts[part])]["image"]
        return self.records[i].example(decode(content))


def pack(cache: str, source: Files, size: int | None) -> Packed:
    """Build what is not yet there of the pack of `source` in the folder `cache`: squares of `size`,
    or files as they are.

    Raises: UserError if more pictures cannot be decoded than the source tolerates.
    """
    root, parts = _plan(cache, source, size)
    total, found = sum(map(len, parts.values())), {}
    with bar(total, description=f"preparing {source.name} in {root}", unit="image") as progress:
        for directory, files in parts.items():
            whole, broken = directory.exists(), {}
            examples = functools.partial(
                _examples, source, files, size, found, broken, total, progress
            )
            array_record.prepare(
                str(root),
                directory.parent.name,
                features=_features,
                examples=examples,
                shown=False,
                notes={"skipped": broken},
                description=f"Pictures of {source.name}.",
            )
            if whole:
                progress.update(len(files))
            found |= _broken(directory)
    return Packed(source, list(parts), found)


def open_packed(cache: str, source: Files, size: int | None) -> "Files | Packed":
    """The pack of `source` in the folder `cache` if it is whole; otherwise the source itself, with
    a warning if there are others.
    """
    root, parts = _plan(cache, source, size)
    if not all(directory.exists() for directory in parts):
        if any(root.parent.glob(f"{source.name}-*/part*/{array_record.LAYOUT}")):
            logging.warning(
                "what was prepared in %s is not whole, or of other files, captions or settings "
                "than %s has now, which is "
                "read itself: run vqd prepare again",
                root.parent,
                source.place,
            )
        return source
    broken = functools.reduce(operator.or_, map(_broken, parts))
    if gone := source.skipped | broken:
        logging.warning(
            "%s of the %d pictures in %s are left out, as vqd prepare says",
            summarise(gone),
            len(source.pictures()) + len(source.skipped),
            source.place,
        )
    return Packed(source, list(parts), broken)


def _plan(
    cache: str, source: Files, size: int | None
) -> tuple[pathlib.Path, dict[pathlib.Path, list[str]]]:
    """The folder of the pack, and the directory and the pictures of each of its parts, which are
    about equally large.
    """
    digest = fingerprint(source.fingerprint, size, PART)[:16]
    root = pathlib.Path(cache).expanduser() / f"{source.name}-{size or 'files'}-{digest}"
    pictures = source.pictures()
    count = -(-len(pictures) // PART)
    bounds = [len(pictures) * i // count for i in range(count + 1)]
    return root, {
        root / f"part{i:04d}" / array_record.LAYOUT: pictures[start:stop]
        for i, (start, stop) in enumerate(zip(bounds, bounds[1:]))
    }


def _features(tfds: Any) -> dict[str, Any]:
    return {"image": tfds.features.Image(), "file": tfds.features.Text()}


def _examples(
    source: Files,
    files: list[str],
    size: int | None,
    before: dict[str, str],
    broken: dict[str, str],
    total: int,
    progress: Bar,
) -> Iterator[dict[str, Any]]:
    """The pictures that decode, in order; the others go into `broken` with the reason, as they did
    into `before` in other parts.
    """

    def picture(file: str) -> bytes | str:
        try:
            content, image = source.decoded(file)
        except UserError as error:
            return reason(error.__cause__)
        return content if size is None else png(Resize(size=size)(image))

    for file, content in prefetch(picture, files):
        progress.update()
        if isinstance(content, bytes):
            yield {"image": content, "file": printable(file)}
            continue
        broken[file] = content
        if len(before | broken) > source.tolerated * total or len(broken) == len(files):
            raise UserError(
                f"Of the {total} images in {source.place} at least {summarise(before | broken)} cannot "
                "be decoded; at most "
                f"{source.tolerated:.0%} are left out, and not {len(files)} in a row: mend or "
                "delete them."
            )


def _broken(directory: pathlib.Path) -> dict[str, str]:
    with array_record.damage(directory):
        return dict(
            json.loads((directory / array_record.NOTES).read_text(encoding="utf-8"))["skipped"]
        )


def png(image: np.ndarray) -> bytes:
    """A PNG file of the picture: quickly written, not the smallest."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
