"""Captions of emoji in many wordings, drawn at random for each training example.

Beside the four wordings of `emoji_captions`: other nouns for the thing (20 %), its colour (half of
the time, where its image has one and its name has none), its kind ("a cat, an animal": 10 %), no
style (10 %), and other words for the style (20 % of the rest).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from vqd_jax.data.emoji_captions import article, caption, phrase
from vqd_jax.data.emoji_nouns import KINDS, NO_KIND, NOUNS, UNUSED_ALIASES
from vqd_jax.data.hues import COLOURS
from vqd_jax.data.source import Record

OTHER_NOUN, COLOUR, KIND, NO_STYLE, OTHER_STYLE = 0.2, 0.5, 0.1, 0.1, 0.2  # probabilities
STYLE_WORDS = {
    "google": ("noto",),
    "twitter": ("twemoji",),
    "openmoji": ("black outline",),
    "flat": ("microsoft", "simple"),
    "fluent": ("3d", "shaded"),
    "blob": ("gumdrop", "android"),
    "emojione": ("emojitwo",),
    "classic": ("glossy", "old emojione"),
    "streamline": ("outline", "line art"),
    "firefox": ("mozilla",),
}  # other words for each style
COLOUR_WORDS = frozenset({*COLOURS, "brown", "black", "white", "grey"})
REVERSED = ("arrow", "fist ", "lower left", "heavy ", "earth ", "double ", "point ", "mailbox ")

_STYLED = (
    "{article} {style} style emoji of {phrase}",
    "{article} {style} drawing of {phrase}",
    "{name}, {style} style",
    "{style} emoji: {name}",
)
_PLAIN = ("an emoji of {phrase}", "a drawing of {phrase}", "{phrase}", "emoji: {name}")


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """Words for what an emoji shows: its name, other nouns, and its kind, "" if it has none."""

    name: str
    others: tuple[str, ...]
    kind: str


def words(name: str, aliases: tuple[str, ...], subcategory: str) -> Words:
    """The words for an emoji, without aliases that are long, not in the order of English, or have a
    colour, which fits some styles only.
    """
    fit = lambda alias: (
        alias not in UNUSED_ALIASES
        and len(alias.split()) <= 3
        and not has_colour(alias)
        and not alias.startswith(REVERSED)
    )
    others = dict.fromkeys([*filter(fit, aliases), *NOUNS.get(name, ())])
    return Words(name, tuple(others), "" if name in NO_KIND else KINDS.get(subcategory, ""))


def has_colour(name: str) -> bool:
    return not COLOUR_WORDS.isdisjoint(name.split())


def coloured(name: str, colour: str) -> str:
    """("red apple", "blue") → "blue apple"; ("cup with straw", "blue") → "blue cup with straw"."""
    old = next((word for word in name.split() if word in COLOUR_WORDS), None)
    if old is None:
        return f"{colour} {name}"
    return " ".join(colour if word == old else word for word in name.split())


def wordings(what: str, style: str) -> tuple[str, ...]:
    """The four wordings of a phrase such as "a cat and a pizza"; the first one is canonical."""
    return tuple(_fill(form, what, what, style) for form in _STYLED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiRecord(Record):
    """A record whose training captions have many wordings.

    Attributes:
      words: of the thing, or of the two things.
      colours: a colour word for each thing, "" where none fits its image.
      joint: between two things: "and" or "with".
    """

    words: tuple[Words, ...]
    colours: tuple[str, ...]
    joint: str = "and"

    @classmethod
    def of(cls, record: Record, **fields: Any) -> "EmojiRecord":
        """The record with these further fields."""
        return cls(**vars(record), **fields)

    def draw_caption(self, rng: np.random.Generator) -> str:
        names = [
            self._draw_name(words, colour, rng) for words, colour in zip(self.words, self.colours)
        ]
        what = f" {self.joint} ".join(map(phrase, names))
        name = names[0] if len(names) == 1 else what
        kind = self.words[0].kind if len(names) == 1 else ""
        if rng.random() < KIND and kind:
            what, name = f"{what}, {kind}", f"{name}, {kind}"
        style, others = self.style, STYLE_WORDS.get(self.style, ())
        draw, form = rng.random(), rng.integers(len(_STYLED))
        if draw < NO_STYLE:
            return _fill(_PLAIN[form], what, name, "")
        if draw < NO_STYLE + (1 - NO_STYLE) * OTHER_STYLE and others:
            style = others[rng.integers(len(others))]
        return _fill(_STYLED[form], what, name, style)

    def _draw_name(self, words: Words, colour: str, rng: np.random.Generator) -> str:
        draw, which, show = rng.random(3)
        name = words.name
        if draw < OTHER_NOUN and words.others:
            name = words.others[int(which * len(words.others))]
        if self.part == "recoloured":
            return coloured(name, colour)
        return coloured(name, colour) if colour and show < COLOUR and not has_colour(name) else name

    def texts(self) -> Iterator[str]:
        yield from self.captions
        if self.part != "original":  # its words are those of its originals, and colours
            return
        (words,) = self.words
        for other in words.others:
            yield caption(other, self.style)
        for style in STYLE_WORDS.get(self.style, ()):
            yield caption(words.name, style)
        for what in filter(None, (words.kind, *self.colours)):
            yield f"an emoji of {what}"


def _fill(form: str, what: str, name: str, style: str) -> str:
    return form.format(article=article(style), phrase=what, name=name, style=style)
