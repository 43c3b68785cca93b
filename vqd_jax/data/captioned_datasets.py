"""Captioned images that Hugging Face's library `datasets` reads: data sets of the hub, parquet
files, webdataset shards.

They are streamed once, in order, into the cache, packed as `vqd prepare` packs other sets;
`datasets` itself keeps no copy of them. The set is written in shards; after an interruption the
finished shards are kept, and the stream goes on behind them.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import lock
from vqd_jax.data import array_record, splits
from vqd_jax.data.dataset_columns import Columns
from vqd_jax.data.dataset_stream import Row, Selection, State
from vqd_jax.data.image_bytes import decode, encode_png, reason
from vqd_jax.data.image_files import summarise
from vqd_jax.data.loader import prefetch
from vqd_jax.data.prepared import SHARD_SIZE
from vqd_jax.data.source import Example, Record, fingerprint
from vqd_jax.data.transforms import Resize

TOLERATED = 0.5  # the share of rows without a usable image or caption that is left out

Done = list[tuple[pathlib.Path, dict[str, Any]]]  # the finished shards and their notes


class CaptionedDatasets:
    """The rows of a data set that have an image and, where they are wanted, captions or a class.

    The fingerprint covers captions and the content of the images. A set of the hub is read once,
    even if it changes there; local files are read again if their names, sizes or times change.

    Args:
      chosen: the rows and columns.
      cache: the folder for the shards.
      size: the side of the squares to which images are resized; None keeps them as they are.
      colour: "srgb" or "raw", see `image_bytes.decode`.
    Raises: UserError naming the data set if it cannot be read, or if less than half of its rows can
      be used; without the library `datasets`, unless the shards are complete.
    """

    def __init__(
        self, chosen: Selection, *, cache: str, size: int | None = None, colour: str = "srgb"
    ):
        digest = fingerprint(chosen.identity(), size, colour, SHARD_SIZE)[:16]
        root = pathlib.Path(cache).expanduser() / f"datasets-{size or 'files'}-{digest}"
        done = _finished(root)
        if not _complete(done):
            with lock(root / "lock"):
                done = _write(root, chosen, size, colour)
        self.skipped = _skipped(done)
        rows = [row for _, notes in done for row in notes["rows"]]
        if self.skipped:
            logging.warning(
                "%s of the %d rows of %s are left out",
                summarise(f"{row}: {why}" for row, why in self.skipped.items()),
                len(rows) + len(self.skipped),
                chosen.path,
            )
        split_of = splits.assign(
            ((digest, "") for _, digest, *_ in rows),
            held_out_cells=0.0,
            held_out_items=chosen.held_out_items,
        )
        self.records = [
            Record(
                item=f"row{number}",
                group=digest,
                captions=tuple(captions),
                split=split_of[digest, ""],
                label=label,
            )
            for number, digest, captions, label in rows
        ]
        self.fingerprint = fingerprint("datasets", colour, records=self.records)
        self._shards, self._colour = [shard for shard, _ in done], colour
        self._stored = [array_record.read(shard) for shard in self._shards]
        self._starts = np.cumsum([0, *map(len, self._stored)])
        if self._starts[-1] != len(rows):
            raise UserError(
                f"the shards in {root} hold {self._starts[-1]} images in place of {len(rows)}: "
                "delete that folder, and they are written again"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        with array_record.damage(self._shards[shard]):
            content = self._stored[shard][i - int(self._starts[shard])]["image"]
        return self.records[i].example(decode(content, colour=self._colour))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """An image that is stored.

    Attributes:
      content: its bytes; None behind the last image.
      row: its row, the digest of its original bytes, its captions and its label.
      state: the place of the stream behind it.
      skipped: the rows between the image before and this one, and the reasons.
    """

    content: bytes | None
    row: tuple[Any, ...]
    state: State | None
    skipped: dict[str, str]


def _finished(root: pathlib.Path) -> Done:
    done: Done = []
    while (shard := root / f"part{len(done):04d}" / array_record.LAYOUT).exists():
        done.append((shard, array_record.read_notes(shard)))
    return done


def _skipped(done: Done) -> dict[str, str]:
    return {row: why for _, notes in done for row, why in notes["skipped"].items()}


def _complete(done: Done) -> bool:
    return bool(done) and done[-1][1]["last"]


def _write(root: pathlib.Path, chosen: Selection, size: int | None, colour: str) -> Done:
    """Writes the missing shards, and returns all of them."""
    if _complete(done := _finished(root)):
        return done
    last = done[-1][1] if done else {"commit": chosen.commit(), "state": None, "rows": [[-1]]}
    stream, columns = chosen.open(last["commit"], last["state"])
    start = last["rows"][-1][0] + 1
    encode = functools.partial(_encode, chosen, columns, size, colour)
    kept = _kept(chosen, start, prefetch(encode, chosen.rows(stream, start)), _skipped(done))
    ahead = [next(kept)]
    while not _complete(done):
        notes = {"commit": last["commit"], "rows": [], "skipped": {}}
        shard = array_record.write(
            str(root),
            f"part{len(done):04d}",
            features=lambda tfds: {"image": tfds.features.Image()},
            examples=functools.partial(_examples, ahead, kept, notes),
            total=SHARD_SIZE,
            notes=notes,
            description=f"Images of {chosen.path}.",
        )
        done.append((shard, notes))
    return done


def _encode(
    chosen: Selection, columns: Columns, size: int | None, colour: str, item: Row
) -> tuple[bytes | None, Any]:
    """The bytes to store with (digest, captions, label), or None and the reason. UserError if the
    image could not be read this time.
    """
    _, row, _ = item
    captions, label = columns.captions_in(row)
    if not captions:
        return None, "it has no class" if columns.classes else "it has no caption"
    try:
        content = chosen.content(columns.image_in(row))
        image = decode(content, colour=colour)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        return None, reason(error)
    digest = hashlib.sha256(content).hexdigest()[:16]
    stored = content if size is None else encode_png(Resize(size=size)(image))
    return stored, (digest, captions, label)


def _kept(
    chosen: Selection,
    start: int,
    encoded: Iterable[tuple[Row, tuple[bytes | None, Any]]],
    broken: dict[str, str],
) -> Iterator[_Kept]:
    """The images from row `start` on, and what ends them. UserError if too many are `broken`."""

    def check(seen: int, at_least: int = 0) -> None:
        if len(broken) > TOLERATED * max(seen, at_least):
            raise UserError(
                f"{summarise(f'{row}: {why}' for row, why in broken.items())} of the first {seen} "
                f"rows of {chosen.path} cannot be used; at most {TOLERATED:.0%} are left out"
            )

    number, skipped = start - 1, {}
    for (number, _, state), (content, about) in encoded:
        if content is None:
            skipped[f"row{number}"] = broken[f"row{number}"] = about
            check(number + 1, SHARD_SIZE)
        else:
            yield _Kept(content, (number, *about), state, skipped)
            skipped = {}
    if number < 0:
        raise UserError(f"there are no rows in the split {chosen.split} of {chosen.path}")
    check(number + 1)
    yield _Kept(None, (), None, skipped)


def _examples(
    ahead: list[_Kept], kept: Iterator[_Kept], notes: dict[str, Any]
) -> Iterator[dict[str, bytes]]:
    """Yields the images of a shard and completes its notes. `ahead` holds the next image, and
    afterwards the first one of the next shard.
    """
    while ahead[0].content is not None and len(notes["rows"]) < SHARD_SIZE:
        [image] = ahead
        notes["rows"].append(image.row)
        notes["skipped"] |= image.skipped
        notes["state"] = image.state
        yield {"image": image.content}
        ahead[:] = [next(kept)]
    notes["last"] = ahead[0].content is None
    if notes["last"]:
        notes["skipped"] |= ahead[0].skipped
