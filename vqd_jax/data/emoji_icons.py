"""Emoji of seven more drawing styles, from icon sets of the npm registry (`@iconify-json/…`).

A set is fetched once by `npm pack`, at a pinned version whose checksum is stored here, and drawn by
`resvg-py`. Skin tones and flags are left out.
"""

import base64
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import import_extra
from vqd_jax.core.files import lock
from vqd_jax.data import emoji_art
from vqd_jax.data.emoji_art import SIDE, Codes
from vqd_jax.data.emoji_icon_names import BLOB, CLASSIC, EMOJIONE, FIREFOX, OLDER, STREAMLINE

SECONDS = 600.0  # that fetching one set may take


@dataclasses.dataclass(frozen=True)
class IconSet:
    """An icon set of the npm registry.

    Attributes:
      package, version, integrity: the tar file and its SHA-512 in base64, as npm writes it.
      title, author, url, licence: as its info.json says.
      count: the emoji that it has, without skin tones and flags.
      names: icon → name of the emoji it shows, "" for none; other icons have the name of an emoji.
    """

    package: str
    version: str
    integrity: str
    title: str
    author: str
    url: str
    licence: str
    count: int
    names: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> str:
        """The name that `npm pack` gives the tar file."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ICON_SETS = {
    "flat": IconSet(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "Fluent Emoji Flat",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
        1_587,
    ),
    "fluent": IconSet(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "Fluent Emoji",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
        1_575,
    ),
    "blob": IconSet(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Noto Emoji (v1)",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        1_209,
        BLOB,
    ),
    "emojione": IconSet(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "Emoji One (Colored)",
        "Emoji One",
        "https://github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
        1_102,
        EMOJIONE,
    ),
    "classic": IconSet(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
        "Emoji One (v1)",
        "Emoji One",
        "https://github.com/joypixels/emojione-legacy",
        "CC-BY-SA-4.0",
        939,
        CLASSIC,
    ),
    "streamline": IconSet(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "Streamline Emojis",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
        "CC-BY-4.0",
        553,
        STREAMLINE,
    ),
    "firefox": IconSet(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Firefox OS Emoji",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
        "Apache-2.0",
        802,
        FIREFOX,
    ),
}  # by style


def digest(style: str) -> str:
    """Changes with the set of a style and with the names of its icons."""
    icons = ICON_SETS[style]
    return hashlib.sha256(repr((icons.integrity, icons.names, OLDER)).encode()).hexdigest()[:8]


def rows(style: str, cache: str) -> Iterator[dict[str, Any]]:
    """The emoji of a style as `emoji_art.rows` gives them; fetches its set into `cache`/npm.

    Raises: UserError, on the call, if resvg-py or npm is missing or the set cannot be fetched.
    """
    resvg = import_extra("resvg_py", "icons", "drawing this emoji style")
    return _rows(style, fetch(ICON_SETS[style], pathlib.Path(cache).expanduser() / "npm"), resvg)


def fetch(icons: IconSet, folder: pathlib.Path) -> pathlib.Path:
    """The tar file of a set in the folder, with npm if it is not there.

    Raises: UserError if it has another checksum, or if npm is missing or fails.
    """
    path = folder / icons.file
    try:
        with lock(folder / "lock"):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=folder) as part:
                    _npm_pack(icons, pathlib.Path(part))
                    _check(icons, pathlib.Path(part) / icons.file)
                    (pathlib.Path(part) / icons.file).replace(path)
    except OSError as error:
        raise UserError(f"{icons.package} cannot be written to {folder}: {error}") from error
    _check(icons, path)
    return path


def _npm_pack(icons: IconSet, folder: pathlib.Path) -> None:
    wanted = f"{icons.package}@{icons.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"the emoji style needs {wanted} of the npm registry, and npm is missing: install "
            "Node.js, or leave the style out of emoji.styles"
        )
    command = [npm, "pack", wanted, "--silent", "--ignore-scripts", "--pack-destination", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"npm pack {wanted} took more than {SECONDS:.0f} seconds") from None
    if done.returncode or not (folder / icons.file).is_file():
        said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        raise UserError(f"npm pack {wanted} failed: {said[:300]}")


def _check(icons: IconSet, path: pathlib.Path) -> None:
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != icons.integrity:
        raise UserError(
            f"{path} is not {icons.package} {icons.version}: its sha512 is {found}, expected "
            f"{icons.integrity}; delete it, and it is fetched again"
        )


def _rows(style: str, path: pathlib.Path, resvg: ModuleType) -> Iterator[dict[str, Any]]:
    icons, chars = _read(path)
    names, categories = emoji_art.emoji_names(), emoji_art.emoji_categories()
    for point, icon in sorted(_matches(ICON_SETS[style], icons, chars).items()):
        category, subcategory = emoji_art.category_of(categories, point)
        if emoji_art.is_extra(point, category):
            continue
        name, aliases, _ = names[point]
        yield {
            "image": draw(resvg, icons, icon),
            "style": style,
            "item": emoji_art.dashed(point),
            "name": name,
            "aliases": "|".join(aliases),
            "category": category,
            "subcategory": subcategory,
        }


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The icons of a set, and code points → icon where the set has such a table."""
    with tarfile.open(path) as archive:
        read = lambda name: json.load(archive.extractfile(f"package/{name}"))
        chars = read("chars.json") if "package/chars.json" in archive.getnames() else {}
        return read("icons.json"), chars


def _matches(icon_set: IconSet, icons: dict[str, Any], chars: dict[str, str]) -> dict[Codes, str]:
    """Code points → icon: by the set's table, by our names, by names of emoji and, last, by their
    aliases and names in older versions of Unicode.
    """
    own, others = _points_by_name()
    corrected = dict(OLDER) | dict(icon_set.names)
    known = [*icons["icons"], *icons.get("aliases", {})]
    found: dict[Codes, str] = {}
    for code, icon in chars.items():
        if (point := emoji_art.codes(code)) in own.values():
            found.setdefault(point, icon)
    for icon in known:
        if corrected.get(icon):
            found.setdefault(own[_letters(corrected[icon])], icon)
    for table in (own, others):
        for icon in known:
            point = table.get(_letters(icon.removesuffix("-1")))
            if icon not in corrected and point is not None:
                found.setdefault(point, icon)
    return found


@functools.cache
def _points_by_name() -> tuple[dict[str, Codes], dict[str, Codes]]:
    """Names of emoji, and their aliases and older names, in letters and digits → code points."""
    import emoji

    own: dict[str, Codes] = {}
    for point, (name, *_) in emoji_art.emoji_names().items():
        own.setdefault(_letters(name), point)
    points, others = set(own.values()), {}
    for text, entry in emoji.EMOJI_DATA.items():
        point = tuple(c for c in map(ord, text) if c != 0xFE0F)
        for alias in entry.get("alias", ()) if point in points else ():
            others.setdefault(_letters(emoji_art.plain(alias)), point)
    for entry in emoji_art.emoji_data():
        point = emoji_art.codes(entry["unified"])
        for name in (entry["name"] or "", *entry["short_names"]) if point in points else ():
            others.setdefault(_letters(name), point)
    return own, {name: point for name, point in others.items() if name not in own}


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9#*]", "", name.lower())


def draw(resvg: ModuleType, icons: dict[str, Any], name: str) -> bytes:
    """The PNG file of an icon, centred on a white square of SIDE pixels."""
    flip, icon = False, icons["icons"].get(name)
    if icon is None:
        alias = icons["aliases"][name]
        flip, icon = alias.get("hFlip", False), icons["icons"][alias["parent"]]
    field = lambda key, default: icon.get(key, icons.get(key, default))
    left, top = field("left", 0), field("top", 0)
    width, height = field("width", 16), field("height", 16)
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIDE}" height="{SIDE}" viewBox="{box}">{icon["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(resvg.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))
    return emoji_art.png_on_white(
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    )
