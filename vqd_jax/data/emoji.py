"""Captioned emoji in three drawing styles, the default data set: it installs with pip and trains on
a laptop.

All of it is built once; filters apply when reading, so every configuration shares one build and one
split.
"""

import functools
import hashlib
import io
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record, emoji_art, splits
from vqd_jax.data.source import Record, fingerprint
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
)  # label: the index here
ROWS = 10_546

_ZWJ, _MAN, _WOMAN, _FEMALE, _MALE, _RIGHTWARDS = 0x200D, 0x1F468, 0x1F469, 0x2640, 0x2642, 0x27A1
_BARE = frozenset(
    """
    bacon beans bread broccoli butter coral curry custard dango falafel flatbread fondue garlic honey milk money oden
    popcorn rice sake salad salt spaghetti sushi tea water food ice fire fog foggy snow soap wood yarn thread luggage
    claim polish hair mate badminton baseball basketball bowling camping cooking cricket fencing hockey lacrosse racing
    softball tennis volleyball pong
    aquarius aries cancer capricorn gemini leo libra ophiuchus pisces sagittarius scorpio taurus virgo
    claus fuji kaaba liberty om zzz dna infinity information construction control customs selfie
    bald breast-feeding crossing divide dizzy locked minus multiply plus prohibited radioactive registered unlocked
    warning wireless
    away down littering no rolling smoking star-struck together up voltage vomiting entry
    """.split()
)  # last words of names that take no article
_SINGULAR_S = frozenset(
    "abacus bus cactus compass fleur-de-lis hibiscus hippopotamus lotus minibus octopus rhinoceros "
    "trolleybus".split()
)
_JOINTS = re.compile(
    r" (?:with|of|in|on|over|behind|at|and|facing|holding|without|curving|tilted|pointed|pointing|"
    r"showing|blowing|not|done|for|to|from|under|off|savoring)\b"
)
_BARE_STARTS = re.compile(
    r"(?:man|woman|person|people|men|women|no|deaf|pregnant|kiss (?:man|woman)|input|keycap|"
    r"hundred)[ ,]|family|(?:man|woman|person|kiss)$|\S+ o'clock|\S+-thirty"
)


def caption(name: str, style: str) -> str:
    """The canonical caption: ("red apple", "google") → "a google style emoji of a red apple"."""
    return f"{_article(style)} {style} style emoji of {phrase(name)}"


def phrase(name: str) -> str:
    """The name with an article where it is a countable singular; people keep the short form ("woman
    mechanic").
    """
    head = _JOINTS.split(name.split(",")[0])[0]
    last = head.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "'s")) and last not in _SINGULAR_S
    if plural or last in _BARE or _BARE_STARTS.match(name):
        return name
    return f"{_article(name)} {name}"


def captions(name: str, style: str, aliases: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The canonical caption, then other wordings, then the first two aliases."""
    article = _article(style)
    return (
        caption(name, style),
        f"{article} {style} drawing of {phrase(name)}",
        f"{name}, {style} style",
        f"{style} emoji: {name}",
        *(caption(alias, style) for alias in aliases[:2]),
    )


def _article(text: str) -> str:
    if re.match(r"uni|eu|ewe|one", text):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|x-|sos |ng ", text) else "a"


class Emoji:
    """All emoji in the chosen styles, on white.

    Args:
      cache: a directory; the set is built there the first time (half a minute, 34 MB).
      resolution: side of the square images; stored at 72.
      skin_tones, flags: keep variants with a skin tone, and the category of flags.
      people: keep sequences that differ only in gender or direction ("man mechanic", families)
      beside "mechanic".
      categories: names of categories or subcategories to keep; empty keeps all.
      max_items: keep this many emoji, a stable choice among those that every chosen style has; 0
      keeps all. held_out_cells, held_out_items: see `splits`. Filters never change a split, but
      "never all styles" means `styles`.
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
                f"The emoji styles are {', '.join(STYLES)}, not "
                f"{unknown[0] if unknown else 'none'}."
            )
        self._resize = Resize(size=resolution)
        self.skipped: dict[str, str] = {}
        self.directory = _build(cache)
        self._stored, rows = _scan(self.directory)
        known = {row.category for row in rows} | {row.subcategory for row in rows}
        if missing := [category for category in categories if category not in known]:
            raise UserError(
                f"No emoji category is called {missing[0]!r}; there are {', '.join(sorted(known))}."
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

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = self.records[i]
        if i not in self._images:
            stored = Image.open(io.BytesIO(self._stored[self._indices[i]]["image"])).convert("RGB")
            self._images[i] = self._resize(np.asarray(stored))
        return record.example(self._images[i])


class _Row:
    """One stored emoji without its picture."""

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
def _scan(directory: pathlib.Path) -> tuple[Any, list[_Row]]:
    """The stored examples, and all their metadata; every byte is read once, which checks the hashes
    of the file.
    """
    stored = array_record.read(directory, decode=False)
    with array_record.damage(directory):
        return stored, [_Row(i, stored[i]) for i in range(len(stored))]


def _subset(rows: list[_Row], count: int, styles: int) -> list[_Row]:
    """The `count` emoji with the smallest SHA-256 of their code points among those that all styles
    have.
    """
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
            "every "
            "style; 0 keeps all."
        )
    chosen = set(common[:count])
    return [row for row in rows if row.item in chosen]


def _build(cache: str) -> pathlib.Path:
    def features(tfds: Any) -> dict[str, Any]:
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

    return array_record.prepare(
        cache,
        "emoji",
        features=features,
        examples=emoji_art.rows,
        total=ROWS,
        description="Emoji drawn by Google (Noto), Twitter (Twemoji) and OpenMoji, with names.",
    )
