"""Bad and odd data, in tables: the content of a file → its pixels or the reason why it is left out,
and of a caption file → captions.
"""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vqd_jax.config import sources
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError, printable
from vqd_jax.data import prepared
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.data.decode_check import check_decoding
from vqd_jax.data.image_bytes import decode, reason
from vqd_jax.data.image_files import ImageFiles
from vqd_jax.data.text.bpe import BytePair
from vqd_jax.data.transforms import RandomCrop, Reference, Resize
from vqd_jax.inference import inpaint
from vqd_jax.inference.prompts import MAX_PROMPT, check_prompt, escape_prompt, split_prompt

RNG = np.random.default_rng(0)
H, W = 5, 7
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (H, W, 1), dtype=np.uint8)
RED = (200, 30, 40)
DEEP = RNG.integers(0, 65536, (H, W, 4), dtype=np.uint16)
DARK = np.full((H, W), 255, np.uint16)
DEEP[0, 0, 0], DEEP[0, 1:, 0] = 258, np.arange(W - 1) * 9999
NOISE = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
FORMATS = {
    "png": {},
    "jpg": {"quality": 90},
    "webp": {"quality": 90},
    "gif": {},
    "bmp": {},
    "tif": {},
}


def saved(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind), **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *extra):
    """A PNG file by its specification: colour 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def deep(bands, *extra):
    """A 16-bit PNG file of some bands of DEEP."""
    rows = b"".join(b"\0" + row[:, bands].astype(">u2").tobytes() for row in DEEP)
    return png(W, H, 16, {1: 0, 2: 4, 3: 2, 4: 6}[len(bands)], rows, *extra)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def on_white(rgb, alpha):
    return np.rint((rgb.astype(float) * alpha + 255 * (255 - alpha.astype(float))) / 255)


def flat(colour, size=(H, W)):
    return np.broadcast_to(np.uint8(colour), (*size, 3))


def from_ink(c, m, y, k):
    return flat([255 * (1 - x / 255) * (1 - k / 255) for x in (c, m, y)], (16, 16))


def bits(name):
    return (Image.fromarray(RGB).convert("L") if name == "L" else Image.fromarray(RGB)).convert(
        name
    )


def palette(clear):
    """RGB in 8 colours, some of them transparent, and its pixels on white."""
    image = Image.fromarray(RGB).quantize(8)
    alpha = np.full(256, 255, np.uint8)
    alpha[: len(clear)] = list(clear)
    index = np.asarray(image)
    colours = np.array(image.getpalette()[:24], np.uint8).reshape(-1, 3)
    return image, on_white(colours[index], alpha[index][..., None])


def gif(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x02\x02\x44\x01\0;"
    )


def changed(content, **offsets):
    """A BMP file that claims another size."""
    out = bytearray(content)
    out[18:26] = struct.pack("<ii", offsets["width"], offsets["height"])
    return bytes(out)


def corrupt(content):
    middle = len(content) // 2
    return content[:middle] + b"\x11" * 40 + content[middle + 40 :]


def cmyk(*ink):
    return Image.new("CMYK", (16, 16), ink)


def without_adobe(content):
    """A CMYK JPEG file without the marker of Adobe's programs that its inks are inverted."""
    at = content.index(b"\xff\xee\0\x0eAdobe")
    return content[:at] + content[at + 16 :]


def moving(kind, **options):
    first, second = Image.new("RGB", (W, H), RED), Image.new("RGB", (W, H), "blue")
    return saved(first, kind, save_all=True, append_images=[second], **options)


PALETTE, ON_PALETTE = palette([0, 255, 0])
PALETTE_BYTES, ON_PALETTE_BYTES = palette([0, 99, 200])
INKS = (200, 100, 0, 50)
NO_IMAGE = "it is empty or no image"
PLAIN_GREY = np.asarray(bits("L"))
UPPER = (DEEP >> 8).astype(np.uint8)
FLOATS = RNG.random((H, W), np.float32)
BOMB = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**26)))

# name → (content, its pixels or the reason why it is left out, how far off they may be)
IMAGES = {
    **{f"plain.{kind}": (saved(RGB, kind), RGB, 0) for kind in ("png", "bmp", "tif")},
    "plain.webp": (saved(RGB, "webp", lossless=True), RGB, 0),
    "plain.gif": (saved(PALETTE, "gif"), np.asarray(PALETTE.convert("RGB")), 0),
    "plain.jpg": (saved(flat(RED), "jpg"), flat(RED), 2),
    "a jpeg called.png": (saved(flat(RED), "jpg"), flat(RED), 2),
    "grey.png": (saved(bits("L"), "png"), grey(PLAIN_GREY), 0),
    "bits.png": (saved(bits("1"), "png"), grey(255 * np.asarray(bits("1"))), 0),
    "grey and alpha.png": (
        saved(np.concatenate([PLAIN_GREY[..., None], ALPHA], -1), "png"),
        on_white(grey(PLAIN_GREY), ALPHA),
        1,
    ),
    "alpha.png": (saved(np.concatenate([RGB, ALPHA], -1), "png"), on_white(RGB, ALPHA), 1),
    "alpha.tif": (saved(np.concatenate([RGB, ALPHA], -1), "tif"), on_white(RGB, ALPHA), 1),
    "alpha.webp": (
        saved(np.concatenate([RGB, ALPHA], -1), "webp", lossless=True, exact=True),
        on_white(RGB, ALPHA),
        1,
    ),
    "clear grey.png": (
        saved(np.full((H, W), 7, np.uint8), "png", transparency=7),
        flat((255,) * 3),
        0,
    ),
    "clear colour.png": (
        saved(flat((7, 8, 9)), "png", transparency=(7, 8, 9)),
        flat((255,) * 3),
        0,
    ),
    "clear deep.png": (
        deep([0], chunk(b"tRNS", struct.pack(">H", 258))),
        grey(np.where(DEEP[..., 0] == 258, 255, UPPER[..., 0])),
        0,
    ),
    "palette.png": (saved(PALETTE, "png", transparency=bytes([0, 255, 0])), ON_PALETTE, 1),
    "palette of alphas.png": (
        saved(PALETTE, "png", transparency=bytes([0, 99, 200])),
        ON_PALETTE_BYTES,
        1,
    ),
    "palette.gif": (saved(PALETTE, "gif", transparency=0), palette([0])[1], 0),
    "deep grey.png": (deep([0]), grey(UPPER[..., 0]), 0),
    "dark deep grey.png": (saved(DARK, "png"), flat((0, 0, 0)), 0),
    "deep grey.tif": (saved(DEEP[..., 0], "tif"), grey(UPPER[..., 0]), 0),
    "deep.png": (deep([0, 1, 2]), UPPER[..., :3], 0),
    "deep grey and alpha.png": (deep([0, 3]), on_white(grey(UPPER[..., 0]), UPPER[..., 3:]), 1),
    "deep alpha.png": (deep([0, 1, 2, 3]), on_white(UPPER[..., :3], UPPER[..., 3:]), 1),
    "integers.tif": (saved(PLAIN_GREY.astype(np.int32), "tif"), grey(PLAIN_GREY), 0),
    "large integers.tif": (
        saved(DEEP[..., 0].astype(np.int32) * 9, "tif"),
        "its values go from 0 to .* grey of 8 or 16 bits is read",
        0,
    ),
    "floats.tif": (saved(FLOATS, "tif"), grey(np.rint(255 * FLOATS)), 0),
    "larger floats.tif": (saved(PLAIN_GREY.astype(np.float32), "tif"), grey(PLAIN_GREY), 0),
    "no numbers.tif": (saved(FLOATS * np.nan, "tif"), "its values go from nan to nan", 0),
    "ink.jpg": (
        saved(cmyk(*INKS), "jpg", quality=100),
        from_ink(*INKS),
        2,
    ),  # as Adobe writes it, inverted
    "ink not inverted.jpg": (
        without_adobe(saved(cmyk(*(255 - x for x in INKS)), "jpg", quality=100)),
        from_ink(*INKS),
        2,
    ),
    "ink.tif": (saved(cmyk(*INKS), "tif"), from_ink(*INKS), 1),
    **{f"moving.{kind}": (moving(kind), flat(RED), 0) for kind in ("png", "gif", "tif")},
    "moving.webp": (moving("webp", lossless=True), flat(RED), 0),
    **{
        f"turned {n}.{kind}": (saved(RGB, kind, exif=turned(n), **options), turn(RGB), off)
        for n, turn in TURNS.items()
        for kind, options, off in (
            ("png", {}, 0),
            ("webp", {"lossless": True}, 0),
            ("tif", {}, 0),
            ("jpg", {"quality": 100, "subsampling": 0}, 3),
        )
    },
    "turned deep.png": (
        saved(DEEP[..., 0], "png", exif=turned(6)),
        np.rot90(grey(UPPER[..., 0]), -1),
        0,
    ),
    "turned palette.png": (
        saved(PALETTE, "png", transparency=bytes([0, 255, 0]), exif=turned(8)),
        np.rot90(ON_PALETTE),
        1,
    ),
    "turned nonsense.jpg": (saved(flat(RED), "jpg", exif=turned(77)), flat(RED), 2),
    "broken exif.jpg": (
        saved(flat(RED), "jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        flat(RED),
        2,
    ),
    "1x1.png": (saved(RGB[:1, :1], "png"), RGB[:1, :1], 0),
    "1x1000.png": (saved(np.resize(RGB, (1000, 1, 3)), "png"), np.resize(RGB, (1000, 1, 3)), 0),
    "1000x1.bmp": (saved(np.resize(RGB, (1, 1000, 3)), "bmp"), np.resize(RGB, (1, 1000, 3)), 0),
    "trailing rubbish.png": (saved(RGB, "png") + b"x" * 99, RGB, 0),
    "without its end.png": (saved(RGB, "png")[:-12], RGB, 0),
    "empty.png": (b"", NO_IMAGE, 0),
    "empty.jpg": (b"", NO_IMAGE, 0),
    "text.png": (b"not a picture\n", NO_IMAGE, 0),
    "page.jpg": (b"<!DOCTYPE html><title>404</title>", "it is a web page", 0),
    "a program.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "it is a PostScript file",
        0,
    ),  # Pillow would run Ghostscript
    **{
        f"truncated.{kind}": (
            saved(NOISE, kind, **options)[: -len(saved(NOISE, kind, **options)) // 2],
            "truncated|decoder",
            0,
        )
        for kind, options in FORMATS.items()
    },
    "corrupt.png": (corrupt(saved(NOISE, "png")), "broken|data stream|CRC", 0),
    # without checksums nobody can tell: damaged pixels are used
    **{
        f"corrupt.{kind}": (corrupt(saved(NOISE, kind, **FORMATS[kind])), np.asarray(NOISE), 255)
        for kind in FORMATS
        if kind != "png"
    },
    "no pixels.gif": (gif(0, 0), "it has no pixels|damaged GIF image", 0),
    "huge.png": (png(60_000, 60_000, 8, 2, b""), "more than 89,478,485 pixels", 0),
    "huge.gif": (gif(65_535, 65_535), "more than 89,478,485 pixels", 0),
    "huge.bmp": (
        changed(saved(RGB, "bmp"), width=50_000, height=50_000),
        "more than 89,478,485 pixels",
        0,
    ),
    "large and whole.png": (
        png(12_000, 12_000, 1, 0, bytes(1501 * 12_000)),
        "12,000 x 12,000 pixels; at most 89,478,485 are read",
        0,
    ),
    "long.png": (png(70_000, 1, 8, 0, bytes(70_001)), "70,000 x 1 pixels; .* 65,535 a side", 0),
    "profile bomb.png": (  # read without its profile
        png(W, H, 8, 2, bytes((3 * W + 1) * H), BOMB),
        np.zeros((H, W, 3), np.uint8),
        0,
    ),
}


def make(root, contents, captions=b"a caption\n"):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        if captions is not None:
            (root / name).with_suffix(".txt").write_bytes(captions)
    return str(root)


def records(source):
    return {record.item: record.captions for record in source.records}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_used_or_left_out_with_a_reason(tmp_path, name):
    """By training and by inpainting."""
    content, want, off = IMAGES[name]
    source = captioned_folder(path=make(tmp_path, {name: content}))
    if isinstance(want, str):
        with pytest.raises(
            UserError, match=rf"1 \({name}: .*\) of the 1 images in {tmp_path} cannot be decoded"
        ) as caught:
            check_decoding(source, str(tmp_path / "cache"))

        assert re.search(want, source.fault(name)) and "\n" not in str(caught.value)
        with pytest.raises(UserError, match="is not an image that can be read"):
            inpaint.read_edit_image(
                str(tmp_path / name), None, ["1", "0", "0", "0"], Resize(size=1)
            )
        return
    got = check_decoding(source, str(tmp_path / "cache"))[0]["image"]
    assert (
        got.dtype == np.uint8
        and got.shape == want.shape
        and abs(got.astype(int) - want).max() <= off
    )
    canvas = inpaint.read_edit_image(
        str(tmp_path / name), None, ["1", "0", "0", "0"], Resize(size=1)
    )
    np.testing.assert_array_equal(canvas.image[:, 1:], got)


def test_preparing_lists_all_broken_images_with_the_reasons(tmp_path):
    contents = {name: content for name, (content, *_) in IMAGES.items()}
    kept = {name for name, (_, want, _) in IMAGES.items() if not isinstance(want, str)}
    source = captioned_folder(
        path=make(tmp_path / "set", contents | {"silent.png": saved(RGB, "png")})
    )
    (tmp_path / "set/silent.txt").unlink()
    source = captioned_folder(path=str(tmp_path / "set"))
    pack = prepared.prepare(str(tmp_path / "cache"), source, None)
    assert (
        set(pack.skipped) == IMAGES.keys() - kept | {"silent.png"}
        and pack.skipped["silent.png"] == "it has no caption"
    )
    assert {
        name for name in kept if (Path(name).stem, ("a caption",)) not in records(pack).items()
    } == set()
    for i, file in enumerate(source.without(pack.skipped).files):
        _, want, off = IMAGES[file]
        assert abs(pack[i]["image"].astype(int) - want).max() <= off


MEMORY = """
import concurrent.futures, resource, sys
import pathlib
from vqd_jax.data.image_bytes import decode
def attempt(path):
    try:
        return decode(path.read_bytes()).size
    except Exception as error:
        return 0
size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
attempt(next(pathlib.Path(sys.argv[1]).glob("small.png")))
before = size()
for path in pathlib.Path(sys.argv[1]).glob("bomb*"):
    assert attempt(path) == (3 * int(sys.argv[2]) if path.name == "bomb5" else 0)
bombs = size() - before
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    assert list(pool.map(attempt, [pathlib.Path(sys.argv[1]) / "large.png"] * 6)) == [3 * 4200**2] * 6
print(bombs, size() - before)
"""


def test_bombs_take_no_memory_and_large_images_are_decoded_one_at_a_time(tmp_path):
    for i, name in enumerate(
        ("huge.png", "huge.gif", "huge.bmp", "large and whole.png", "long.png", "profile bomb.png")
    ):
        (tmp_path / f"bomb{i}").write_bytes(IMAGES[name][0])
    (tmp_path / "small.png").write_bytes(saved(RGB, "png"))
    (tmp_path / "large.png").write_bytes(
        saved(np.zeros((4200, 4200, 3), np.uint8), "png")
    )  # 67 MB for Pillow, and twice 50 for NumPy
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(H * W)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    bombs, all_of_it = map(int, done.stdout.split())
    assert bombs < 100 and all_of_it < 600  # MB; six at once would be a thousand


@pytest.mark.parametrize("transform", [Resize(size=16), RandomCrop(size=16), Reference(size=16)])
@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (65_535, 1), (1, 65_535)])
def test_the_smallest_and_longest_images_become_squares(transform, size):
    image = np.broadcast_to(np.uint8(RED), (*size, 3))
    for rng in (None, np.random.default_rng(0)):
        np.testing.assert_array_equal(transform(image, rng), flat(RED, (16, 16)))


# files and folders


@pytest.mark.parametrize(
    "name",
    [
        "UPPER.PNG",
        "two words.png",
        "new\nline.png",
        "ünïcödé.png",
        "图.png",
        "-.png",
        "a.b.png",
        "x.png/y.png",
        b"\xff\xfe.png".decode(errors="surrogateescape"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_any_name_will_do(tmp_path, name, suffix):
    root = tmp_path / "set"
    make(root, {name: saved(RGB, "png")}, captions=None)
    (root / name).with_suffix(suffix).write_text("a caption")
    source = check_decoding(captioned_folder(path=str(root)), str(tmp_path / "cache"))
    assert source.files == [name] and records(source) == {name[:-4]: ("a caption",)}
    pack = prepared.prepare(str(tmp_path / "cache"), source, None)
    np.testing.assert_array_equal(pack[0]["image"], RGB)
    (root / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        check_decoding(captioned_folder(path=str(root)), str(tmp_path / "cache"))
    assert (
        "\n" not in str(caught.value)
        and f"1 ({printable(name)}: {NO_IMAGE})" in str(caught.value)
        and str(caught.value).isprintable()
    )


def test_links_are_followed_except_in_circles(tmp_path, caplog):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    make(root, {"a.png": saved(RGB, "png"), "deep/b.png": saved(RGB, "png")})
    make(elsewhere, {"c.png": saved(RGB, "png"), "d.png": saved(RGB, "png")})
    for name in ("c.png", "c.txt"):
        (root / name).symlink_to(elsewhere / name)
    (root / "linked").symlink_to(elsewhere)
    for name, target in (
        ("circle", root),
        ("up", tmp_path),
        ("self", root / "self"),
        ("deep/linked", elsewhere),
    ):
        (root / name).symlink_to(target)
    source = captioned_folder(path=str(root))
    assert source.files == ["a.png", "c.png", "deep/b.png", "linked/c.png", "linked/d.png"]
    assert "1 (deep/linked) links to folders" in caplog.text and len(caplog.records) == 1
    link = tmp_path / "link"
    link.symlink_to(root)
    assert captioned_folder(path=str(link)).fingerprint == source.fingerprint


def test_pipes_folders_and_dangling_links_are_not_images(tmp_path):
    """Pipes, which would block, and folders are ignored; a dangling link is a broken image."""
    root = tmp_path / "set"
    make(root, {"a.png": saved(RGB, "png"), "deep/b.png": saved(RGB, "png")})
    for place in (root, root / "deep"):
        os.mkfifo(place / "pipe.png")
        (place / "folder.png").mkdir()
        (place / "nothing.png").symlink_to(place / "gone")
        (place / "nothing.txt").write_text("a caption")
        (place / "piped.png").write_bytes(saved(RGB, "png"))
        os.mkfifo(place / "piped.txt")
    source = captioned_folder(path=str(root))
    assert source.files == ["a.png", "deep/b.png", "deep/nothing.png", "nothing.png"]
    assert source.skipped == {
        "piped.png": "it has no caption",
        "deep/piped.png": "it has no caption",
    }
    assert {file: source.fault(file) for file in source.files} == dict.fromkeys(source.files) | {
        "nothing.png": "No such file or directory",
        "deep/nothing.png": "No such file or directory",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_named(tmp_path):
    root = tmp_path / "set"
    make(
        root,
        {"a.png": saved(RGB, "png"), "b.png": saved(RGB, "png"), "deep/c.png": saved(RGB, "png")},
    )
    (root / "a.png").chmod(0)
    (root / "b.txt").chmod(0)
    source = captioned_folder(path=str(root))
    assert (
        source.skipped == {"b.png": "b.txt cannot be read: Permission denied"}
        and source.fault("a.png") == "Permission denied"
    )
    (root / "deep").chmod(0)
    try:
        with pytest.raises(UserError, match="the folder .*/deep cannot be read: Permission denied"):
            captioned_folder(path=str(root))
    finally:
        (root / "deep").chmod(0o700)


# captions

LONG = "word " * 20_000
ODD = {
    b"one\n\n \t\n two  words \r\n": ("one", "two words"),
    "\ufeffbyte order mark".encode(): ("byte order mark",),
    b"windows\r\nlines\r\n": ("windows", "lines"),
    b"old\rmac": ("old mac",),
    b"same\nsame\n same ": ("same",),
    LONG.encode(): (LONG.strip(),),
    b"x" * 100_000: ("x" * 100_000,),
    "قطة على الحصيرة\n一只红色的鸟\n👩\u200d🚀 and 🏳️\u200d🌈".encode(): (
        "قطة على الحصيرة",
        "一只红色的鸟",
        "👩\u200d🚀 and 🏳️\u200d🌈",
    ),
    "\u200fright to left\u200e".encode(): ("\u200fright to left\u200e",),
    b"?!...": ("?!...",),
    "line\u2028separator\u00a0and\u3000spaces".encode(): ("line separator and spaces",),
    b"": "its caption is empty",
    b"\n \n": "its caption is empty",
    "\ufeff\n\u200b\u200e\n".encode(): "its caption is empty",
    b"fine\nbro\xffken": "a.txt, line 2 is not UTF-8 text (byte 4 of the line)",
    "Größe".encode("latin-1"): "a.txt, line 1 is not UTF-8 text (byte 3 of the line)",
    "a cat".encode("utf-16"): ("a cat",),
    "a cat".encode("utf-16")[:-1]: "a.txt, line 1 is not UTF-8 text (it has a zero byte)",
    b"zero\0byte": "a.txt, line 1 is not UTF-8 text (it has a zero byte)",
    None: "it has no caption",
}


@pytest.mark.parametrize("content", ODD, ids=lambda c: repr(c)[:30])
def test_a_caption_file_is_used_or_left_out_with_a_reason(tmp_path, content):
    root, want = tmp_path / "set", ODD[content]
    make(root, {"a.png": saved(RGB, "png")}, captions=content)
    make(root, {"b.png": saved(RGB, "png"), "c.png": saved(RGB, "png")})
    (root / "alone.txt").write_text("a caption without a picture is no matter")
    source = captioned_folder(path=str(root))
    if isinstance(want, tuple):
        assert records(source) == {"a": want, "b": ("a caption",), "c": ("a caption",)}
        ids = BytePair.train([*want, "a caption"], vocabulary=300)(want)
        assert (
            ids.shape == (len(want), 16) and (ids[:, 0] == 1).all() and (ids == 2).any(axis=1).all()
        )
        for prompt in map(escape_prompt, want):
            assert split_prompt(check_prompt(prompt)) == [(prompt, 1.0)]
        return
    assert source.skipped == {"a.png": want} and records(source) == {
        "b": ("a caption",),
        "c": ("a caption",),
    }
    with pytest.raises(
        UserError
    ) as caught:  # training says it at its start; preparing leaves it out
        check_decoding(source, str(tmp_path / "cache"))
    assert str(caught.value).startswith(
        f"1 (a.png: {want}) of the 3 images in {root} have no usable caption"
    )


@pytest.mark.parametrize(
    "caption", ["SALT AND PEPPER", "cats AND", "AND", "a AND b :-3", "x :0.5", LONG, "a:b AND AND"]
)
def test_every_caption_is_a_valid_prompt(caption):
    """A training ends with images for captions of the data; none may end it with an error."""
    prompt = escape_prompt(caption)
    assert split_prompt(check_prompt(prompt)) == [(prompt, 1.0)]
    assert (
        prompt.lower() == caption.lower()[:MAX_PROMPT]
    )  # to the tokenizers, which lower-case, the same


DEEPER = b'{"file_name": ' + b"[" * 100_000
TABLES = [
    (
        "metadata.jsonl",
        b'{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "x"}\r\n\n',
        {"a": ("x",)},
    ),
    (
        "metadata.jsonl",
        b'\xef\xbb\xbf{"file_name": "./a.png", "text": ["x", " ", "y"], "text": ["z"]}',
        {"a": ("z",)},
    ),
    ("metadata.jsonl", b'{"file_name": "a.png", "text": "\\ud83d\\ude00"}', {"a": ("\U0001f600",)}),
    ("metadata.jsonl", b'{"file_name": "a.png", "text": ["\\ud800", "x"]}', {"a": ("\ud800", "x")}),
    (
        "metadata.jsonl",
        b'{"file_name": "a.png", "text": ""}\n{"file_name": "x/b.png", "text": "y"}',
        {"x/b": ("y",)},
    ),
    (
        "metadata.jsonl",
        b'{"file_name": "a.png", "text": "x"}\n{"file_name": "a.pn',
        "line 2 is not JSON: Unterminated string",
    ),
    ("metadata.jsonl", DEEPER, "line 1 is not JSON: .*recursion"),
    (
        "metadata.jsonl",
        b'{"file_name": "a.png", "text": ' + b"9" * 9999 + b"}",
        "line 1 is not JSON: Exceeds the limit",
    ),
    ("metadata.jsonl", b'{"text": "x"}', "line 1 has no column of images, only text: name"),
    ("metadata.jsonl", b'{"file_name": "a.png"}', "has no column of captions, only file_name"),
    (
        "metadata.jsonl",
        b'{"file_name": ["a.png"], "text": "x"}',
        'line 1: expected {"file_name": a string',
    ),
    ("metadata.jsonl", b'{"file_name": "", "text": "x"}', "line 1 names no image"),
    (
        "metadata.jsonl",
        b'{"file_name": "' + b"n" * 5000 + b'.png", "text": "x"}',
        "for example n{300}…: it is not there, and line 1 of metadata.jsonl names it",
    ),
    (
        "metadata.jsonl",
        b'{"file_name": "a\\u0000.png", "text": "x"}',
        r"for example a\\x00.png: it is not there, and line 1 of metadata.jsonl names it",
    ),
    (
        "metadata.jsonl",
        b'{"file_name": "\\ud800.png", "text": "x"}',
        r"for example \\ud800.png: it is not there, and line 1 of metadata.jsonl names it",
    ),
    (
        "metadata.jsonl",
        b'{"file_name": "../out.png", "text": "x"}',
        "line 1: file_name '../out.png' points outside the folder",
    ),
    (
        "metadata.jsonl",
        b'{"file_name": "x/../../out.png", "text": "x"}',
        "line 1: file_name 'x/../../out.png' points outside",
    ),
    ("metadata.jsonl", b'{"file_name": "..\\\\out.png", "text": "x"}', "points outside the folder"),
    (
        "metadata.jsonl",
        b'{"file_name": "/etc/passwd", "text": "x"}',
        "line 1: file_name '/etc/passwd' points outside the folder",
    ),
    ("metadata.jsonl", b"zero\0byte", r"line 1 is not UTF-8 text \(it has a zero byte\)"),
    (
        "captions.csv",
        b'file_name,text\r\na.png,"x, ""y""\nz"\r\n"x/b.png",w\r\n',
        {"a": ('x, "y" z',), "x/b": ("w",)},
    ),
    ("captions.csv", b"text,id,file_name\nx,3,a.png\n,,\n", {"a": ("x",)}),
    ("captions.csv", b"file_name,text\na.png," + LONG.encode(), {"a": (LONG.strip(),)}),
    ("captions.csv", b"", "line 1 has no column of images, only nothing: name"),
    (
        "captions.csv",
        b"file_name;text\na.png;x\n",
        "line 1 has no column of images, only file_name;text: name",
    ),
    ("captions.csv", b"file_name,caption\na.png,x\n", {"a": ("x",)}),
    ("captions.csv", b"file_name,text\na.png\n", "line 2 has not as many columns as the first"),
    (
        "captions.csv",
        b"file_name,text\na.png,red, and flat\n",
        "line 2 has not as many columns as the first",
    ),
    ("captions.csv", b'file_name,text\na.png,"x\n', "line 3 is not CSV: unexpected end of data"),
    ("captions.csv", b'file_name,text\na.png,"x"y\n', "line 2 is not CSV"),
    (
        "captions.csv",
        b"file_name,text\n../out.png,x\n",
        "line 2: file_name '../out.png' points outside the folder",
    ),
    ("captions.csv", b"file_name,text\na.png,x\n" + b"\xff", "line 3 is not UTF-8 text"),
]


@pytest.mark.parametrize(
    "name,content,want", TABLES, ids=[f"{name[-5:]}{i}" for i, (name, *_) in enumerate(TABLES)]
)
def test_a_table_is_used_or_ends_the_run_with_one_sentence(tmp_path, name, content, want):
    make(tmp_path, {"out.png": saved(RGB, "png")})
    root = tmp_path / "set"
    make(root, {"a.png": saved(RGB, "png"), "x/b.png": saved(RGB, "png")}, captions=None)
    (root / name).write_bytes(content)
    if isinstance(want, dict):
        source = captioned_folder(path=str(root))
        assert records(source) == want and set(source.skipped) == {
            f"{item}.png" for item in {"a", "x/b"} - want.keys()
        }
        return
    with pytest.raises(UserError, match=want) as caught:
        captioned_folder(path=str(root))
    assert (
        "\n" not in str(caught.value)
        and len(str(caught.value)) < 900
        and (str(root / name) in str(caught.value) or f"of {name} names it" in str(caught.value))
    )


def test_a_table_that_is_a_folder_is_refused(tmp_path):
    make(tmp_path, {"a.png": saved(RGB, "png")})
    (tmp_path / "captions.csv").mkdir()
    with pytest.raises(UserError, match="captions.csv is not a file"):
        captioned_folder(path=str(tmp_path))


def test_duplicates_are_used_as_they_are(tmp_path):
    """The same image under two names, one name in two formats, the same caption twice."""
    source = captioned_folder(
        path=make(
            tmp_path,
            {name: saved(RGB, Path(name).suffix[1:]) for name in ("a.png", "b.png", "b.bmp")},
        )
    )
    assert source.files == ["a.png", "b.bmp", "b.png"] and [r.item for r in source.records] == [
        "a",
        "b",
        "b",
    ]
    assert {r.captions for r in source.records} == {("a caption",)}
    for i in range(3):
        np.testing.assert_array_equal(source[i]["image"], RGB)


# training that was not prepared


@pytest.fixture
def faces(tmp_path):
    """A config whose data set of 100 images has a broken one."""
    make(
        tmp_path / "faces",
        {f"{n:05d}.png": saved(RGB, "png") for n in range(100)} | {"00041.png": b""},
        captions=None,
    )
    c = defaults()
    c.data.source, c.ffhq.path = "ffhq", str(tmp_path / "faces")
    return c, tmp_path


def test_every_set_is_decoded_once_before_training(faces, caplog, monkeypatch):
    c, place = faces
    source = sources.source(c, place / "cache")
    assert (
        f"1 (00041.png: {NO_IMAGE}) of the 100 images in {place}/faces cannot be decoded and are "
        "skipped" in caplog.text
    )
    assert (
        len(source) == 99
        and list(source.skipped) == ["00041.png"]
        and "00041" not in records(source)
    )
    monkeypatch.setattr(ImageFiles, "decoded", lambda *_: pytest.fail("decoded again"))
    caplog.clear()
    again = sources.source(c, place / "cache")  # a run that goes on
    assert (
        again.fingerprint == source.fingerprint
        and again.skipped == source.skipped
        and len(caplog.records) == 1
    )


@pytest.mark.parametrize(
    "stored", [b"", b"[1]", b"{", b'{"none.png": "x"}', b'{"00003.png": 1}', b"\xff"]
)
def test_a_damaged_list_of_broken_images_is_made_again(faces, stored):
    c, place = faces
    sources.source(c, place / "cache")
    (kept,) = (place / "cache").glob("checked-*.json")
    good = kept.read_bytes()
    kept.write_bytes(stored)
    assert (
        list(sources.source(c, place / "cache").skipped) == ["00041.png"]
        and kept.read_bytes() == good
    )


def test_training_starts_with_a_cache_that_cannot_be_written(faces):
    c, place = faces
    (place / "file").write_bytes(b"")
    assert list(sources.source(c, place / "file").skipped) == ["00041.png"]


def test_more_than_one_in_a_hundred_ends_the_run_at_its_start(faces):
    c, place = faces
    (place / "faces/00007.png").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"2 \(00007.png: .*, 00041.png: .*\) of the 100 images .* at most 1% are skipped",
    ):
        sources.source(c, place / "cache")


def test_an_image_that_breaks_later_ends_the_run_with_its_name(faces):
    c, place = faces
    source = sources.source(c, place / "cache")
    (place / "faces/00012.png").unlink()
    with pytest.raises(
        UserError,
        match=r"the image 00012.png in .* cannot be decoded \(No such file or directory\)",
    ):
        source[12]


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS])
def test_bombs_are_refused_whatever_the_process_sets(monkeypatch, action, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for name in ("huge.png", "huge.gif", "huge.bmp", "large and whole.png"):
        with warnings.catch_warnings(action=action), pytest.raises(Exception) as caught:
            decode(IMAGES[name][0])
        assert re.search("89,478,485|exceeds limit", reason(caught.value))
