"""Captioned emoji in three drawing styles, the default data set: it installs with pip and trains on
a laptop. Seven more styles need npm, and images may have recoloured, mirrored and paired variants.

Each set is built once and filtered on reading, so all configs share one build and one split; skin
tones and flags are a set of their own.
"""

import functools
import hashlib
import pathlib
from types import ModuleType
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record, emoji_art, emoji_icons, emoji_looks, emoji_variants, splits
from vqd_jax.data.emoji_captions import captions
from vqd_jax.data.emoji_looks import Original
from vqd_jax.data.emoji_variants import Variant
from vqd_jax.data.emoji_wording import EmojiRecord, words
from vqd_jax.data.image_bytes import decode
from vqd_jax.data.source import Example, Items, Record, fingerprint
from vqd_jax.data.transforms import Resize

STYLES = emoji_art.STYLES
ALL_STYLES = (*STYLES, *emoji_icons.ICON_SETS)
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
BASIC, EXTRA = "emoji_basic", "emoji_extra"  # the stored sets of the styles from pip packages
COUNTS = {BASIC: 4_728, EXTRA: 5_818}  # emoji-style pairs
WORDINGS = ("plain", "varied")

_ZWJ, _MAN, _WOMAN, _FEMALE, _MALE, _RIGHTWARDS = 0x200D, 0x1F468, 0x1F469, 0x2640, 0x2642, 0x27A1


class Emoji:
    """All emoji in the chosen styles, on white.

    Args:
      cache: the folder in which the set is built the first time (10 seconds, 14 MB; with skin tones
        and flags 20 seconds, 34 MB; for all ten styles a minute and a half, 90 MB).
      resolution: side of the square images in pixels; they are stored at 72.
      styles: the drawing styles to keep; those of `emoji_icons` are fetched with npm.
      skin_tones, flags: whether to keep variants with a skin tone, and the category of flags.
      people: whether to keep sequences that differ only in gender or direction ("man mechanic",
        families) from a kept one ("mechanic").
      categories: the categories or subcategories to keep; empty keeps all.
      max_items: the number of emoji to keep, a stable choice among those that every kept style has;
        0 keeps all.
      held_out_cells, held_out_items: the share of emoji-style pairs and of emoji to hold out (see
        `splits`). Other filters than `styles` do not change a split.
      recoloured, mirrored, pairs: whether originals of the training set are also records in other
        colours and mirrored, and how many records show two of them (see `emoji_variants`).
      held_out_colours, held_out_pairs: the share of (emoji, colour) pairs and of pairs of emoji
        that are held out in all styles.
      wording: of training captions: "plain" for one of `Record.captions`, or "varied" (see
        `emoji_wording`).
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
        recoloured: bool = False,
        mirrored: bool = False,
        pairs: int = 0,
        held_out_colours: float = 0.1,
        held_out_pairs: float = 0.1,
        wording: str = "plain",
    ):
        unknown = [style for style in styles if style not in ALL_STYLES]
        if unknown or not styles:
            raise UserError(
                f"the emoji styles are {', '.join(ALL_STYLES)}; got "
                f"{unknown[0] if unknown else 'none'}"
            )
        if wording not in WORDINGS:
            raise UserError(f"emoji.wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
        if pairs < 0:
            raise UserError(f"emoji.pairs is a number of images, got {pairs}")
        self._resize = Resize(size=resolution)
        self.skipped: dict[str, str] = {}
        sets = [_scan(directory) for directory in _build(cache, styles, skin_tones or flags)]
        rows = [row for rows in sets for row in rows]
        kept = [row for row in rows if flags or row.category != emoji_art.FLAGS]
        known = {row.category for row in kept} | {row.subcategory for row in kept}
        if missing := [category for category in categories if category not in known]:
            raise UserError(
                f"no emoji category is called {missing[0]!r}; there are {', '.join(sorted(known))}"
                + ("" if flags else ", and with emoji.flags=True those of flags")
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
            and (flags or row.category != emoji_art.FLAGS)
            and (people or not row.variant)
            and (not categories or row.category in categories or row.subcategory in categories)
        ]
        if max_items:
            rows = _subset(rows, max_items, len(styles))
        rows.sort(key=lambda row: (row.item, ALL_STYLES.index(row.style)))
        self._rows = rows
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
        self.variants: list[Variant] = []  # how the images after the originals are made
        varied, parts = wording == "varied", ["emoji", resolution, [row.digest for row in rows]]
        if varied or recoloured or mirrored or pairs:
            originals = self._originals(cache)
            made: list[tuple[Variant, Record]] = []
            if recoloured:
                made += emoji_variants.recoloured(originals, held_out_colours, varied)
            if mirrored:
                made += emoji_variants.mirrored(originals, varied)
            made += emoji_variants.pairs(originals, pairs, held_out_pairs, varied)
            if varied:
                self.records = [
                    EmojiRecord.of(o.record, words=(o.words,), colours=(o.colour,))
                    for o in originals
                ]
            self.variants = [variant for variant, _ in made]
            self.records += [record for _, record in made]
            parts += [wording, emoji_variants.VERSION, repr(self.variants)]
        self.fingerprint = fingerprint(*parts, records=self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        count = len(self._rows)
        if i < count:
            return self.records[i].example(self._resized(i))
        variant = self.variants[i - count]
        return self.records[i].example(
            variant.image(self._resized, self._stored, self._resize.size)
        )

    def origins(self, i: int) -> tuple[int, ...]:
        """The indices of the originals of which image i is made: itself, one or two."""
        count = len(self._rows)
        return (i,) if i < count else self.variants[i - count].origins

    def _stored(self, i: int) -> np.ndarray:
        return decode(self._rows[i].read(), colour="raw")

    def _resized(self, i: int) -> np.ndarray:
        if i not in self._images:
            self._images[i] = self._resize(self._stored(i))
        return self._images[i]

    def _originals(self, cache: str) -> list[Original]:
        digests = [row.digest for row in self._rows]
        looks = emoji_looks.looks(pathlib.Path(cache).expanduser(), digests, self._stored)
        return [
            Original(
                record=record,
                name=row.name,
                category=row.category,
                subcategory=row.subcategory,
                words=words(row.name, row.aliases, row.subcategory),
                look=look,
            )
            for row, record, look in zip(self._rows, self.records, looks)
        ]


class _Row:
    """The metadata of a stored emoji-style pair."""

    def __init__(self, examples: Items, index: int):
        stored: dict[str, Any] = examples[index]
        text = lambda key: (
            stored[key].decode() if isinstance(stored[key], bytes) else str(stored[key])
        )
        self._examples, self._index = examples, index
        self.digest = hashlib.sha256(stored["image"]).hexdigest()
        self.style, self.item, self.name = text("style"), text("item"), text("name")
        self.category, self.subcategory = text("category"), text("subcategory")
        self.aliases = tuple(filter(None, text("aliases").split("|")))
        point = emoji_art.codes(self.item)
        self.group = emoji_art.dashed(emoji_art.toneless(point)) or self.item
        self.toned = emoji_art.toneless(point) != point
        gendered = point[0] in (_MAN, _WOMAN) or bool({_MALE, _FEMALE, _RIGHTWARDS} & set(point))
        self.variant = _ZWJ in point and self.category == "People & Body" and gendered

    def read(self) -> bytes:
        """The PNG file of the image."""
        return self._examples[self._index]["image"]


@functools.lru_cache(maxsize=len(ALL_STYLES))
def _scan(directory: pathlib.Path) -> list[_Row]:
    """The rows of a stored set. Reads every byte once, which verifies checksums."""
    stored = array_record.read(directory)
    with array_record.damage(directory):
        return [_Row(stored, i) for i in range(len(stored))]


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


def _build(cache: str, styles: tuple[str, ...], extra: bool) -> list[pathlib.Path]:
    """The folders of the stored sets that are needed: one for all styles of pip packages, another
    for their skin tones and flags if `extra`, and one for each other style.
    """
    write = functools.partial(array_record.write, cache, features=_features)
    found = [
        write(
            name=name,
            examples=functools.partial(emoji_art.rows, name == EXTRA),
            total=COUNTS[name],
            description="Emoji drawn by Google (Noto), Twitter (Twemoji) and OpenMoji, with names.",
        )
        for name in ((BASIC, EXTRA) if extra else (BASIC,))
        if set(styles) & set(STYLES)
    ]
    for style, icons in emoji_icons.ICON_SETS.items():
        if style in styles:
            found.append(
                write(
                    name=f"emoji_{style}_{emoji_icons.digest(style)}",
                    examples=functools.partial(emoji_icons.rows, style, cache),
                    total=icons.count,
                    description=f"{icons.title} by {icons.author}, {icons.licence}, {icons.url}",
                )
            )
    return found


def _features(tfds: ModuleType) -> dict[str, Any]:
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
