"""A set of image files packed into few large ones, each picture checked and, where that loses nothing, made small once.

For the transform `resize` the pack holds the finished squares as PNG. Crops start from the whole picture, so for them it
holds the bytes of the files as they are: then it spares millions of small files, but no decoding. What cannot be decoded is
left out, up to 1 %. The pack is made in parts; a killed run goes on with the first part that is not whole.
"""

import collections
import concurrent.futures
import functools
import io
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.data import prepare
from vqd_jax.data.files import Files, some
from vqd_jax.data.folder import TOLERATED, decode
from vqd_jax.data.source import fingerprint
from vqd_jax.data.transforms import Resize
from vqd_jax.errors import UserError
from vqd_jax.progress import Bar, bar

PART = 5_000  # pictures


class Packed:
    """A source that reads the pack of another one; records of pictures that could not be decoded are gone."""

    def __init__(self, source: Files, parts: list[pathlib.Path], skipped: list[str]):
        self.skipped = skipped
        self.root = parts[0].parents[1]
        gone = set(skipped)
        kept = [i for i, file in enumerate(source.files) if file not in gone]
        self.records = [source.records[i] for i in kept]
        self.fingerprint = fingerprint(source.fingerprint, skipped) if skipped else source.fingerprint
        self._parts, self._stored = parts, [prepare.read(part, decode=False) for part in parts]
        self._starts = np.cumsum([0, *map(len, self._stored)])
        rows = {file: row for row, file in enumerate(file for file in source.pictures() if file not in gone)}
        if len(rows) != self._starts[-1]:
            raise UserError(f"The prepared data set in {self.root} holds {self._starts[-1]} pictures, not {len(rows)}: "
                            "delete that folder and it is made again.")
        self._rows = [rows[source.files[i]] for i in kept]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._rows[i]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        with prepare.damage(self._parts[part]):
            content = self._stored[part][row - int(self._starts[part])]["image"]
        return self.records[i].example(decode(content))


def pack(cache: str, source: Files, size: int | None) -> Packed:
    """Build what is not yet there of the pack of `source` in the folder `cache`: squares of `size`, or files as they are.

    Raises: UserError if more than 1 % of the pictures cannot be decoded.
    """
    root, parts = _plan(cache, source, size)
    total, skipped = sum(map(len, parts.values())), []
    with bar(total, description=f"preparing {source.name} in {root}", unit="image") as progress:
        for directory, files in parts.items():
            whole, broken = directory.exists(), []
            examples = functools.partial(_examples, source, files, size, skipped, broken, total, progress)
            prepare.prepare(str(root), directory.parent.name, features=_features, examples=examples, shown=False,
                            notes={"skipped": broken}, description=f"Pictures of {source.name}.")
            if whole:
                progress.update(len(files))
            skipped += _skipped(directory)
    return Packed(source, list(parts), skipped)


def packed(cache: str, source: Files, size: int | None) -> "Files | Packed":
    """The pack of `source` in the folder `cache` if it is whole; otherwise the source itself."""
    _, parts = _plan(cache, source, size)
    if not all(directory.exists() for directory in parts):
        return source
    skipped = [file for directory in parts for file in _skipped(directory)]
    if skipped:
        logging.warning("%s of the %d pictures of %s could not be decoded when they were prepared and are left out",
                        some(skipped), len(source.pictures()), source.name)
    return Packed(source, list(parts), skipped)


def _plan(cache: str, source: Files, size: int | None) -> tuple[pathlib.Path, dict[pathlib.Path, list[str]]]:
    """The folder of the pack, and the directory and the pictures of each of its parts, which are about equally large."""
    digest = fingerprint(source.fingerprint, size, PART)[:16]
    root = pathlib.Path(cache).expanduser() / f"{source.name}-{size or 'files'}-{digest}"
    pictures = source.pictures()
    count = -(-len(pictures) // PART)
    bounds = [len(pictures) * i // count for i in range(count + 1)]
    return root, {root / f"part{i:04d}" / prepare.LAYOUT: pictures[start:stop]
                  for i, (start, stop) in enumerate(zip(bounds, bounds[1:]))}


def _features(tfds: Any) -> dict[str, Any]:
    return {"image": tfds.features.Image(), "file": tfds.features.Text()}


def _examples(source: Files, files: list[str], size: int | None, skipped: list[str], broken: list[str], total: int,
              progress: Bar) -> Iterator[dict[str, Any]]:
    """The pictures that decode, in order; the names of the others go into `broken`, as they went into `skipped` before."""

    def picture(file: str) -> bytes | None:
        try:
            content, image = source.decoded(file)
        except UserError:
            return None
        return content if size is None else _png(Resize(size=size)(image))

    for file, content in _ahead(picture, files):
        progress.update()
        if content is not None:
            yield {"image": content, "file": file}
            continue
        broken.append(file)
        if len(skipped + broken) > TOLERATED * total:
            raise UserError(f"Of the {total} images in {source.place} at least {some(skipped + broken)} cannot be decoded; at most "
                            f"{TOLERATED:.0%} are left out: mend or delete them.")


def _ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) in order, some of them computed ahead by threads."""
    workers = os.cpu_count() or 1
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 4 * workers:
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()


def _skipped(directory: pathlib.Path) -> list[str]:
    with prepare.damage(directory):
        return json.loads((directory / prepare.NOTES).read_text(encoding="utf-8"))["skipped"]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
