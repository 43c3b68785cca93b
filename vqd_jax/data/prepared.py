"""Prepared data sets, which `vqd prepare` makes of image files: few large files of checked images.

For the transform `resize` they hold the resized squares as PNG. Random crops need the original
image, so for them they hold the bytes of the original files: this avoids millions of small reads,
but no decoding. Images that cannot be decoded are left out, up to the share that the source
tolerates. The set is written in shards; after an interruption the finished shards are kept.
"""

import functools
import logging
import operator
import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError, printable
from vqd_jax.data import array_record
from vqd_jax.data.image_bytes import decode, encode_png, reason
from vqd_jax.data.image_files import ImageFiles, summarise
from vqd_jax.data.loader import prefetch
from vqd_jax.data.source import Example, fingerprint
from vqd_jax.data.transforms import Resize
from vqd_jax.runtime.progress import Bar, bar

SHARD_SIZE = 5_000  # images


class Prepared:
    """The data source `source` without its broken images, read from prepared shards."""

    def __init__(self, source: ImageFiles, shards: list[pathlib.Path], broken: dict[str, str]):
        kept = source.without(broken)
        self.records, self.fingerprint, self.skipped = kept.records, kept.fingerprint, kept.skipped
        self.root, self.files = shards[0].parents[1], kept.files
        self.num_images = len(kept.unique_files())
        self._shards, self.colour = shards, source.colour
        self._stored = [array_record.read(shard) for shard in shards]
        self._starts = np.cumsum([0, *map(len, self._stored)])
        rows = {file: row for row, file in enumerate(kept.unique_files())}
        if self.num_images != self._starts[-1]:
            raise UserError(
                f"the prepared data set in {self.root} holds {self._starts[-1]} images in place of "
                f"{self.num_images}: delete that folder, and run vqd prepare again"
            )
        self._rows = [rows[file] for file in kept.files]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        with array_record.damage(self._shards[shard]):
            content = self._stored[shard][row - int(self._starts[shard])]["image"]
        return self.records[i].example(decode(content, colour=self.colour))


def prepare(cache: str, source: ImageFiles, size: int | None) -> Prepared:
    """Writes the missing shards of `source` into the folder `cache`, as squares of `size` pixels or
    as the original files.

    Raises: UserError if more images cannot be decoded than the source tolerates.
    """
    root, shards = _plan(cache, source, size)
    total, broken = sum(map(len, shards.values())), {}
    with bar(total, description=f"preparing {source.name} in {root}", unit="image") as progress:
        for directory, files in shards.items():
            finished, broken_here = directory.exists(), {}
            array_record.write(
                str(root),
                directory.parent.name,
                features=_features,
                examples=functools.partial(
                    _examples, source, files, size, broken, broken_here, total, progress
                ),
                progress=False,
                notes={"skipped": broken_here},
                description=f"Images of {source.name}.",
            )
            if finished:
                progress.update(len(files))
            broken |= _broken(directory)
    return Prepared(source, list(shards), broken)


def open_prepared(cache: str, source: ImageFiles, size: int | None) -> "ImageFiles | Prepared":
    """The prepared set of `source` in the folder `cache` if it is complete, and `source` otherwise.

    Logs a warning if `cache` holds an incomplete set, or one of other files or settings.
    """
    root, shards = _plan(cache, source, size)
    if not all(directory.exists() for directory in shards):
        if any(root.parent.glob(f"{source.name}-*/part*/{array_record.LAYOUT}")):
            logging.warning(
                "the prepared set in %s is incomplete, or its files, captions or settings are not "
                "those of %s, which is read directly: run vqd prepare again",
                root.parent,
                source.location,
            )
        return source
    broken = functools.reduce(operator.or_, map(_broken, shards))
    if skipped := source.skipped | broken:
        logging.warning(
            "%s of the %d images in %s are left out; vqd prepare lists the reasons",
            summarise(skipped),
            len(source.unique_files()) + len(source.skipped),
            source.location,
        )
    return Prepared(source, list(shards), broken)


def _plan(
    cache: str, source: ImageFiles, size: int | None
) -> tuple[pathlib.Path, dict[pathlib.Path, list[str]]]:
    """The folder of the prepared set, and the files of each shard, of about equal numbers."""
    digest = fingerprint(source.fingerprint, size, SHARD_SIZE)[:16]
    root = pathlib.Path(cache).expanduser() / f"{source.name}-{size or 'files'}-{digest}"
    files = source.unique_files()
    count = -(-len(files) // SHARD_SIZE)
    bounds = [len(files) * i // count for i in range(count + 1)]
    return root, {
        root / f"part{i:04d}" / array_record.LAYOUT: files[start:stop]
        for i, (start, stop) in enumerate(zip(bounds, bounds[1:]))
    }


def _features(tfds: ModuleType) -> dict[str, Any]:
    return {"image": tfds.features.Image(), "file": tfds.features.Text()}


def _examples(
    source: ImageFiles,
    files: list[str],
    size: int | None,
    broken_before: dict[str, str],
    broken_here: dict[str, str],
    total: int,
    progress: Bar,
) -> Iterator[dict[str, Any]]:
    """Yields the files that decode, in order, and adds the others to `broken_here` with the reason.

    broken_before: the broken files of earlier shards, which count against the same limit.
    """

    def encoded(file: str) -> tuple[bytes | None, str]:
        """The stored bytes, or None and the reason."""
        try:
            content, image = source.decoded(file)
        except UserError as error:
            return None, reason(error.__cause__)
        return content if size is None else encode_png(Resize(size=size)(image)), ""

    for file, (content, why) in prefetch(encoded, files):
        progress.update()
        if content is not None:
            yield {"image": content, "file": printable(file)}
            continue
        broken_here[file] = why
        broken = broken_before | broken_here
        if len(broken) > source.tolerated * total or len(broken_here) == len(files):
            raise UserError(
                f"at least {summarise(broken)} of the {total} images in {source.location} cannot "
                f"be decoded; at most {source.tolerated:.0%} are left out, and never all of "
                f"{len(files)} in a row: repair or delete them"
            )


def _broken(directory: pathlib.Path) -> dict[str, str]:
    """The files that a shard leaves out, and the reasons."""
    notes = array_record.read_notes(directory)
    with array_record.damage(directory):
        return dict(notes["skipped"])
