"""Captioned emoji in three drawing styles, the default data set: it installs with pip and trains on
a laptop.

The full set is built once and filtered on reading, so all configs share one build and one split.
"""

import functools
import hashlib
import pathlib
from types import ModuleType
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record, emoji_art, splits
from vqd_jax.data.emoji_captions import captions
from vqd_jax.data.image_bytes import decode
from vqd_jax.data.source import Example, Items, Record, fingerprint
from vqd_jax.data.transforms import Resize

STYLES = emoji_art.STYLES
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
    "Component",
    "Other",
)  # a label is an index into it
COUNT = 10_546  # emoji-style pairs

_ZWJ, _MAN, _WOMAN, _FEMALE, _MALE, _RIGHTWARDS = 0x200D, 0x1F468, 0x1F469, 0x2640, 0x2642, 0x27A1


class Emoji:
    """All emoji in the chosen styles, on white.

    Args:
      cache: the folder in which the set is built the first time (half a minute, 34 MB).
      resolution: side of the square images in pixels; they are stored at 72.
      styles: the drawing styles to keep.
      skin_tones, flags: whether to keep variants with a skin tone, and the category of flags.
      people: whether to keep sequences that differ only in gender or direction ("man mechanic",
        families) from a kept one ("mechanic").
      categories: the categories or subcategories to keep; empty keeps all.
      max_items: the number of emoji to keep, a stable choice among those that every kept style has;
        0 keeps all.
      held_out_cells, held_out_items: the share of emoji-style pairs and of emoji to hold out (see
        `splits`). Other filters than `styles` do not change a split.
    """

    def __init__(
        self,
        *,
        cache: str,
        resolution: int = 72,
        styles: tuple[str, ...] = STYLES,
        skin_tones: bool = False,
        flags: bool = False,
        people: bool = True,
        categories: tuple[str, ...] = (),
        max_items: int = 0,
        held_out_cells: float = 0.1,
        held_out_items: float = 0.03,
    ):
        unknown = [style for style in styles if style not in STYLES]
        if unknown or not styles:
            raise UserError(
                f"the emoji styles are {', '.join(STYLES)}; got {unknown[0] if unknown else 'none'}"
            )
        self._resize = Resize(size=resolution)
        self.skipped: dict[str, str] = {}
        self.directory = _build(cache)
        self._stored, rows = _scan(self.directory)
        known = {row.category for row in rows} | {row.subcategory for row in rows}
        if missing := [category for category in categories if category not in known]:
            raise UserError(
                f"no emoji category is called {missing[0]!r}; there are {', '.join(sorted(known))}"
            )
        rows = [row for row in rows if row.style in styles]
        split = splits.assign(
            ((row.group, row.style) for row in rows),
            held_out_cells=held_out_cells,
            held_out_items=held_out_items,
        )
        rows = [
            row
            for row in rows
            if (skin_tones or not row.toned)
            and (flags or row.category != "Flags")
            and (people or not row.variant)
            and (not categories or row.category in categories or row.subcategory in categories)
        ]
        if max_items:
            rows = _subset(rows, max_items, len(styles))
        rows.sort(key=lambda row: (row.item, STYLES.index(row.style)))
        self._indices = [row.index for row in rows]
        self._images: dict[int, np.ndarray] = {}
        self.records = [
            Record(
                item=row.item,
                style=row.style,
                captions=captions(row.name, row.style, row.aliases),
                group=row.group,
                split=split[row.group, row.style],
                label=CATEGORIES.index(row.category),
            )
            for row in rows
        ]
        self.names = {row.item: row.name for row in rows}
        self.fingerprint = fingerprint(
            "emoji", resolution, [row.digest for row in rows], records=self.records
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        record = self.records[i]
        if i not in self._images:
            self._images[i] = self._resize(decode(self._stored[self._indices[i]]["image"]))
        return record.example(self._images[i])


class _Row:
    """The metadata of a stored emoji-style pair."""

    def __init__(self, index: int, stored: dict[str, Any]):
        text = lambda key: (
            stored[key].decode() if isinstance(stored[key], bytes) else str(stored[key])
        )
        self.index, self.digest = index, hashlib.sha256(stored["image"]).hexdigest()
        self.style, self.item, self.name = text("style"), text("item"), text("name")
        self.category, self.subcategory = text("category"), text("subcategory")
        self.aliases = tuple(filter(None, text("aliases").split("|")))
        point = emoji_art.codes(self.item)
        self.group = emoji_art.dashed(emoji_art.toneless(point)) or self.item
        self.toned = emoji_art.toneless(point) != point
        gendered = point[0] in (_MAN, _WOMAN) or bool({_MALE, _FEMALE, _RIGHTWARDS} & set(point))
        self.variant = _ZWJ in point and self.category == "People & Body" and gendered


@functools.lru_cache(maxsize=1)
def _scan(directory: pathlib.Path) -> tuple[Items, list[_Row]]:
    """The stored examples and their metadata. Reads every byte once, which verifies checksums."""
    stored = array_record.read(directory)
    with array_record.damage(directory):
        return stored, [_Row(i, stored[i]) for i in range(len(stored))]


def _subset(rows: list[_Row], count: int, styles: int) -> list[_Row]:
    """The `count` emoji that all styles have with the smallest SHA-256 of their code points."""
    held: dict[str, int] = {}
    for row in rows:
        held[row.item] = held.get(row.item, 0) + 1
    common = sorted(
        (item for item, n in held.items() if n == styles),
        key=lambda item: hashlib.sha256(item.encode()).digest(),
    )
    if count > len(common):
        raise UserError(
            f"max_items {count} is more than the {len(common)} emoji that the filters leave in "
            "every style; 0 keeps all"
        )
    chosen = set(common[:count])
    return [row for row in rows if row.item in chosen]


def _build(cache: str) -> pathlib.Path:
    def features(tfds: ModuleType) -> dict[str, Any]:
        text = {
            key: tfds.features.Text()
            for key in ("style", "item", "name", "aliases", "category", "subcategory")
        }
        return {
            "image": tfds.features.Image(
                shape=(emoji_art.SIDE, emoji_art.SIDE, 3), encoding_format="png"
            ),
            **text,
        }

    return array_record.write(
        cache,
        "emoji",
        features=features,
        examples=emoji_art.rows,
        total=COUNT,
        description="Emoji drawn by Google (Noto), Twitter (Twemoji) and OpenMoji, with names.",
    )
