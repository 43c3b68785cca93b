"""What every data source offers: decoded examples by index, and their metadata without decoding.

An example is {"image": uint8 (H, W, 3), "captions", "item", "style", "split", "label"}; sources
differ only in where it comes from.
"""

import dataclasses
import hashlib
import operator
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The metadata of one example; `captions[0]` is the canonical caption, `label` is -1 where
    there are no classes.

    `group` joins variants of one thing: they share a split.
    """

    item: str
    captions: tuple[str, ...]
    style: str = ""
    split: str = "train"
    label: int = -1
    group: str = ""

    def example(self, image: Any) -> dict[str, Any]:
        """The example that this record and its decoded image make."""
        return {
            "image": image,
            "captions": self.captions,
            "item": self.item,
            "style": self.style,
            "split": self.split,
            "label": self.label,
        }


@runtime_checkable
class Source(Protocol):
    """`fingerprint` changes with anything the source holds (caches are keyed by it); `skipped` says
    why files are left out."""

    records: list[Record]
    fingerprint: str
    skipped: dict[str, str]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


def fingerprint(*parts: object, records: Iterable[Record] = ()) -> str:
    """A hex digest of the parts and the records, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode())
    values = operator.attrgetter(
        *(field.name for field in dataclasses.fields(Record))
    )  # a million records in seconds
    for record in records:
        digest.update(repr(values(record)).encode())
    return digest.hexdigest()[:32]
