"""Formats, colour profiles, bounded work, and what a file is called that is no image."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from vqd_jax.core.errors import UserError
from vqd_jax.core.file_kinds import kind
from vqd_jax.data import captioned_folder, image_bytes
from vqd_jax.data.image_bytes import decode, readable_formats, reason
from vqd_jax.data.image_files import SUFFIXES

PIXELS = np.zeros((24, 32, 3), np.uint8)
PIXELS[:, 16:] = 200, 40, 90


@pytest.fixture
def without_plug_ins(monkeypatch):
    monkeypatch.setattr(image_bytes, "readable_formats", lambda: image_bytes.FORMATS)


def saved(format_, image=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format_, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "suffix,format_",
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".avif", "AVIF"),
        (".jp2", "JPEG2000"),
        (".webp", "WEBP"),
        (".heic", "HEIF"),
        (".jxl", "JXL"),
    ],
)
def test_formats_of_these_days_are_read(tmp_path, suffix, format_):
    if format_ not in readable_formats() and format_ in ("HEIF", "JXL"):
        pytest.skip("the plug-in of Pillow is not installed")
    (tmp_path / f"a{suffix}").write_bytes(saved(format_))
    (tmp_path / "a.txt").write_text("a red stripe")
    source = captioned_folder.captioned_folder(path=str(tmp_path), held_out_items=0.0)
    error = np.abs(source[0]["image"].astype(int) - PIXELS)
    assert np.median(error) <= 3 and error.shape == PIXELS.shape


@pytest.mark.parametrize(
    "suffix,package", [(".heic", "pillow-heif"), (".jxl", "pillow-jxl-plugin")]
)
@pytest.mark.usefixtures("without_plug_ins")
def test_formats_of_plug_ins_are_listed_with_the_plug_in(tmp_path, suffix, package):
    assert suffix in SUFFIXES
    content = {".heic": b"\0\0\0\x18ftypheic" + bytes(99), ".jxl": b"\xff\x0a" + bytes(99)}[suffix]
    (tmp_path / f"a{suffix}").write_bytes(content)
    (tmp_path / "a.txt").write_text("a red stripe")
    source = captioned_folder.captioned_folder(path=str(tmp_path), held_out_items=0.0)
    assert f"pip install {package}" in source.fault(f"a{suffix}")


@pytest.mark.parametrize(
    "content,name",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"PK\3\4", "a ZIP archive"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    ],
)
@pytest.mark.usefixtures("without_plug_ins")
def test_a_file_that_is_no_image_is_called_what_it_is(content, name):
    with pytest.raises(ValueError, match=f"it is {name}"):
        decode(content + bytes(50))
    assert kind(b"") is kind(b"rubbish") is None
    with pytest.raises(ValueError, match="it is empty or no image"):
        decode(b"rubbish")


@pytest.mark.usefixtures("without_plug_ins")
def test_the_real_format_counts_and_not_the_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved("AVIF"))
    (tmp_path / "b.png").write_bytes(b"\0\0\0\x18ftypmif1" + bytes(99))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("a stripe")
    source = captioned_folder.captioned_folder(path=str(tmp_path), held_out_items=0.0)
    assert source[0]["image"].shape == PIXELS.shape
    with pytest.raises(UserError, match="b.png .* cannot be decoded .it is a HEIC image"):
        source[1]


def test_a_png_with_huge_texts_or_a_huge_profile_is_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a" * 5_000_000, zip=True)
    info.add_itxt("more", "b" * 3_000_000)
    content = saved("PNG", pnginfo=info, icc_profile=bytes(3_000_000))
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(content)).load()
    np.testing.assert_array_equal(decode(content), PIXELS)


def profile(gamma):
    """An RGB profile with the primaries of sRGB and this gamma: only curves differ."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for i in range(struct.unpack(">I", data[128:132])[0]):
        name, at, size = struct.unpack(">4sII", data[132 + 12 * i : 144 + 12 * i])
        tags[name] = at, size
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        at, size = tags[name]
        data[at : at + size] = curve.ljust(size, b"\0")
    at, size = tags[b"desc"]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def exact(values, gamma):
    """sRGB values of linear light values ** gamma."""
    light = (values / 255.0) ** gamma
    out = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return 255 * out


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_colours_are_converted_from_the_profile(format_):
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    content = saved(format_, icc_profile=profile(1.0), **options[format_])
    raw = decode(content, colour="raw")
    assert np.abs(raw.astype(int) - PIXELS).max() <= 3
    assert np.abs(decode(content).astype(float) - exact(raw, 1.0)).max() <= 2
    assert decode(content).mean() > raw.mean() + 10


def test_transparency_greys_and_palettes_with_a_profile():
    linear = profile(1.0)
    rgba = np.dstack([PIXELS, np.full((24, 32), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    got = decode(saved("PNG", rgba, icc_profile=linear))
    assert (got[:4] == 255).all()
    assert np.abs(got[4:].astype(float) - exact(PIXELS[4:], 1.0)).max() <= 2
    file = io.BytesIO()
    Image.fromarray(PIXELS).quantize(4).save(file, "PNG", icc_profile=linear)
    assert np.abs(decode(file.getvalue()).astype(float) - exact(PIXELS, 1.0)).max() <= 2
    grey = saved("PNG", PIXELS[..., 0], icc_profile=linear)  # a profile for other channels
    np.testing.assert_array_equal(decode(grey), decode(grey, colour="raw"))


@pytest.mark.parametrize("icc", [b"rubbish", profile(2.2)[:200], b""])
def test_a_damaged_profile_changes_nothing(icc):
    np.testing.assert_array_equal(decode(saved("PNG", icc_profile=icc)), PIXELS)


def test_a_profile_of_srgb_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(decode(saved("PNG", noise, icc_profile=srgb)), noise)


def scans(count):
    """A progressive JPEG file with so many more scans, all of them empty."""
    content = saved("JPEG", np.zeros((512, 512, 3), np.uint8), progressive=True)
    at = content.index(b"\xff\xda")
    length = int.from_bytes(content[at + 2 : at + 4])
    header = bytearray(content[at : at + 2 + length])
    return content[:at] + bytes(header) * count + content[at:]


def test_the_work_of_a_file_is_bounded():
    """Libjpeg passes over the whole image once for each scan."""
    content = scans(400_000)
    assert 4e6 < len(content) < 8e6
    started = time.perf_counter()
    with pytest.raises(ValueError, match="it would take too long: it has 400,0.. scans"):
        decode(content)
    assert time.perf_counter() - started < 1
    assert decode(saved("JPEG", progressive=True)).shape == PIXELS.shape


def test_values_of_twelve_bits_are_told(caplog):
    image_bytes._told_dark.clear()
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)).save(
        file, "PNG"
    )
    assert decode(file.getvalue()).max() == 15
    assert "has values up to 4095 only" in caplog.text and len(caplog.records) == 1


def test_a_reason_is_one_line():
    assert reason(ValueError("a\n  b")) == "a b" and reason(EOFError()) == "EOFError"
