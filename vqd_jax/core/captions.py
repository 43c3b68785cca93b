"""Captions under images, in whatever script the fonts of this machine have. A word that none of
them has becomes the number of its image, never a row of boxes.
"""

import dataclasses
import itertools
import math
import unicodedata

from PIL import ImageDraw, ImageFont

from vqd_jax.core.errors import warn_once
from vqd_jax.core.fonts import Font, emoji_font, font_of, is_invisible, is_mark, openmoji, own

LINES = 6  # of a caption at most
INK = (40, 40, 40)
LINE, TALL_LINE = 14, 18  # pixels; other fonts than Pillow's own are taller
REMEDY = (
    "some captions have characters that no font here has, and show the number of the image "
    "instead: install matplotlib and weblate-fonts with pip, or a font of the script"
)


@dataclasses.dataclass(frozen=True)
class Letter:
    """A letter with its marks, or an emoji with its modifiers, and the font that has it."""

    text: str
    font: Font

    @classmethod
    def of(cls, text: str, font: Font) -> "Letter":
        """The letter as the font draws it: one that does not shape draws joiners as boxes."""
        shaped = font.drawn.layout_engine == ImageFont.Layout.RAQM
        return cls(text if shaped else "".join(c for c in text if not is_invisible(c)), font)


Line = list[Letter]


@dataclasses.dataclass(frozen=True)
class Caption:
    """The lines of a caption, and whether they show all of its words."""

    lines: list[Line]
    complete: bool

    @property
    def line_height(self) -> int:
        letters = itertools.chain(*self.lines)
        return LINE if all(letter.font.own for letter in letters) else TALL_LINE


def layout(text: str, width: int, replacement: str) -> Caption:
    """Lines of at most `width` pixels. Words that no font has are replaced, words that are too long
    are broken, and more than LINES lines end with an ellipsis.
    """
    words, complete = _words(text, replacement)
    lines: list[Line] = [[]]
    for word in words:
        together = [*lines[-1], _space(lines[-1][-1], word[0]), *word] if lines[-1] else word
        if _length(together) <= width:
            lines[-1] = together
            continue
        if lines[-1]:
            lines.append([])
        for letter in word:
            if lines[-1] and _length([*lines[-1], letter]) > width:
                lines.append([])
            lines[-1].append(letter)
    if len(lines) > LINES:
        lines, ellipsis = lines[:LINES], Letter("…", own())
        while lines[-1] and _length([*lines[-1], ellipsis]) > width:
            lines[-1].pop()
        lines[-1].append(ellipsis)
    return Caption(lines, complete)


def draw_line(draw: ImageDraw.ImageDraw, x: int, y: int, line: Line) -> None:
    """Draws a line centred at x, with its top at y."""
    if all(letter.font.own for letter in line):
        draw.text((x, y), _text(line), fill=INK, font=own().drawn, anchor="ma")
        return
    runs, direction = _runs(line), "ltr"
    if _is_right_to_left(_text(line)):
        runs, direction = runs[::-1], "rtl"
    left = x - _length(line) / 2
    baseline = y + TALL_LINE - 5
    for font, text in runs:
        draw.text(
            (left, baseline),
            text,
            INK,
            font.drawn,
            anchor="ls",
            embedded_color=True,
            direction=direction if font.drawn.layout_engine == ImageFont.Layout.RAQM else None,
        )
        left += font.length(text)


def _space(before: Letter, after: Letter) -> Letter:
    """The space between two letters, which keeps the text of one font together."""
    same = before.font is after.font is not openmoji()
    return Letter(" ", before.font if same else own())


def _words(text: str, replacement: str) -> tuple[list[Line], bool]:
    """The words of a text, and whether all could be kept. One font draws the whole text if there is
    one that has it, apart from emoji, or else each word, or else each letter.
    """
    split = [_letters(word) for word in text.split()]
    whole = font_of(itertools.chain(*split))
    out: list[Line] = []
    complete, replaced = True, False
    for letters in split:
        font = whole or font_of(letters)
        chosen = [emoji_font(letter) or font or font_of([letter]) for letter in letters]
        if not all(chosen):
            complete = False
            letters = [*map(_without_marks, letters)]
            chosen = [font or font_of([letter]) for letter, font in zip(letters, chosen)]
        if all(chosen):
            out.append([*map(Letter.of, letters, chosen)])
            replaced = False
            continue
        if not replaced:
            out += [[Letter(c, own()) for c in word] for word in replacement.split()]
        replaced = True
    if not complete:
        warn_once(REMEDY)
    return out, complete


def _without_marks(letter: str) -> str:
    parts = unicodedata.normalize("NFD", letter)
    return "".join(char for char in parts if not is_mark(char)) or letter


def _letters(word: str) -> list[str]:
    """A word in letters with their marks, and emoji with their modifiers."""
    out: list[str] = []
    for char in word:
        modifier = is_mark(char) or is_invisible(char) or _is_skin_tone(char)
        if out and (modifier or out[-1].endswith("\u200d")):
            out[-1] += char
        else:
            out.append(char)
    return out


def _runs(line: Line) -> list[tuple[Font, str]]:
    """The parts of a line with one font each."""
    return [
        (font, _text([*letters]))
        for font, letters in itertools.groupby(line, key=lambda letter: letter.font)
    ]


def _text(line: Line) -> str:
    return "".join(letter.text for letter in line)


def _length(line: Line) -> float:
    return math.fsum(font.length(text) for font, text in _runs(line))


def _is_skin_tone(char: str) -> bool:
    return "\U0001f3fb" <= char <= "\U0001f3ff"


def _is_right_to_left(text: str) -> bool:
    strong = (kind for kind in map(unicodedata.bidirectional, text) if kind in ("L", "R", "AL"))
    return next(strong, "L") != "L"
