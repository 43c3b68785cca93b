"""The interface of a data source: examples by index, and their metadata without decoding images."""

import dataclasses
import hashlib
import operator
from collections.abc import Iterable
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class Example(TypedDict):
    """A decoded image with the fields of its `Record`."""

    image: UInt8[np.ndarray, "H W 3"]
    captions: tuple[str, ...]
    item: str
    style: str
    split: str
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The metadata of one example.

    Args:
      item: its identifier, from the name of its file.
      captions: its captions, the canonical one first.
      style: its drawing style, "" in sets without styles.
      split: one of `splits.SPLITS`, or for variants of `splits.VARIANTS`.
      label: the index of its class, -1 in sets without classes.
      group: joins variants of a thing, which share a split.
      part: "original", or how the image is made of originals.
    """

    item: str
    captions: tuple[str, ...]
    style: str = ""
    split: str = "train"
    label: int = -1
    group: str = ""
    part: str = "original"

    @property
    def thing(self) -> str:
        """What the image shows: the group, or the item where there are no groups."""
        return self.group or self.item

    def draw_caption(self, rng: np.random.Generator) -> str:
        """A caption for training."""
        return self.captions[rng.integers(len(self.captions))]

    def texts(self) -> Iterable[str]:
        """Captions that together have every word of `draw_caption`, to train a tokenizer on."""
        return self.captions

    def example(self, image: UInt8[np.ndarray, "H W 3"]) -> Example:
        """The example of this record and its decoded image."""
        return {
            "image": image,
            "captions": self.captions,
            "item": self.item,
            "style": self.style,
            "split": self.split,
            "label": self.label,
        }


@runtime_checkable
class Items(Protocol):
    """Anything with a length and integer indexing: a list, a range, a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


@runtime_checkable
class Source(Protocol):
    """A sequence of examples.

    `fingerprint` changes with the content of the source, and caches are keyed by it; `skipped` maps
    the files that are left out to the reasons.
    """

    records: list[Record]
    fingerprint: str
    skipped: dict[str, str]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


def fingerprint(*parts: object, records: Iterable[Record] = ()) -> str:
    """A hex digest of the parts and the records, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode())
    # an attrgetter hashes a million records within seconds
    names = [field.name for field in dataclasses.fields(Record) if field.name != "part"]
    values = operator.attrgetter(*names)
    for record in records:
        digest.update(repr(values(record)).encode())
        if record.part != "original":  # without it, as before there were parts
            digest.update(record.part.encode())
    return digest.hexdigest()[:32]
