"""Captioned folders: three caption layouts, odd image modes, broken files and broken
tables.
"""

import io
import json
import logging
import re
import tempfile

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.data import coco, cub_flowers, ffhq, imagenet
from vqd_jax.data.captioned_folder import LAYOUTS, captioned_folder
from vqd_jax.data.decode_check import check_decoding
from vqd_jax.data.source import Source

RED, SIZE = (200, 30, 40), (6, 4)  # width, height


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", SIZE, RED)).save(path, **options)


def unprepared(**options):
    """The source of a folder that was not prepared."""
    with tempfile.TemporaryDirectory() as cache:
        return check_decoding(captioned_folder(**options), cache)


def make(root, names=("a.png", "b.png"), captions="a red card\n"):
    for name in names:
        save(root / name)
        if captions:
            (root / name).with_suffix(".txt").write_text(captions, encoding="utf-8")
    return str(root)


def captions(source):
    return {record.item: record.captions for record in source.records}


def test_text_files_beside_images(tmp_path):
    make(tmp_path, ["a.png", "deep/er/b.jpg", "C.JPEG"])
    (tmp_path / "deep/er/b.txt").write_bytes(
        "\ufeffpremière  ligne\r\n\n  second line \nsecond line\n".encode()
    )
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden/x.png")
    source = unprepared(path=str(tmp_path))
    assert isinstance(source, Source)
    assert captions(source) == {
        "C": ("a red card",),
        "a": ("a red card",),
        "deep/er/b": ("première ligne", "second line"),
    }
    assert len(source) == 3 and source.skipped == {}
    example = source[1]
    assert set(example) == {"image", "captions", "item", "style", "split", "label"}
    assert example["image"].shape == (4, 6, 3) and example["image"].dtype == np.uint8
    np.testing.assert_array_equal(example["image"], np.broadcast_to(RED, (4, 6, 3)))
    assert (example["item"], example["style"], example["label"], example["captions"]) == (
        "a",
        "",
        -1,
        ("a red card",),
    )


def test_metadata_jsonl(tmp_path):
    make(tmp_path, ["x/a.png", "b.png"], captions="")
    rows = [
        {"file_name": "x/a.png", "text": ["one", "two"], "licence": "CC0"},
        {"file_name": "b.png", "text": "three"},
        {"file_name": "x\\a.png", "text": "four"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert captions(unprepared(path=str(tmp_path))) == {
        "x/a": ("one", "two", "four"),
        "b": ("three",),
    }


def test_captions_csv(tmp_path):
    make(tmp_path, captions="")
    lines = [
        "id,file_name,text",
        '1,a.png,"red, and\nflat"',
        "2,a.png,a card",
        "",
        '3,b.png,"the ""second"""',
        "",
    ]
    (tmp_path / "captions.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert captions(unprepared(path=str(tmp_path))) == {
        "a": ("red, and flat", "a card"),
        "b": ('the "second"',),
    }


def on_white(alpha):
    return [round(c * alpha / 255 + 255 - alpha) for c in RED]


@pytest.mark.parametrize(
    "name, image, options, want",
    [
        ("rgba.png", Image.new("RGBA", SIZE, (*RED, 128)), {}, on_white(128)),
        ("la.png", Image.new("LA", SIZE, (60, 0)), {}, [255] * 3),
        ("grey.png", Image.new("L", SIZE, 77), {}, [77] * 3),
        ("bit.png", Image.new("1", SIZE, 1), {}, [255] * 3),
        ("cmyk.jpg", Image.new("CMYK", SIZE, (0, 0, 0, 0)), {}, [255] * 3),
        ("deep.png", Image.fromarray(np.full((4, 6), 0x8012, np.uint16)), {}, [0x80] * 3),
        ("deep.tif", Image.fromarray(np.full((4, 6), 0x4321, np.uint16)), {}, [0x43] * 3),
        ("int.tif", Image.fromarray(np.full((4, 6), 99, np.int32)), {}, [99] * 3),
        ("palette.gif", Image.new("RGB", SIZE, RED).quantize(4), {}, RED),
        (
            "moving.gif",
            Image.new("RGB", SIZE, RED).quantize(4),
            {"save_all": True, "append_images": [Image.new("RGB", SIZE, "blue").quantize(4)]},
            RED,
        ),
        ("lossless.webp", Image.new("RGB", SIZE, RED), {"lossless": True}, RED),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, name, image, options, want):
    save(tmp_path / name, image, **options)
    (tmp_path / name).with_suffix(".txt").write_text("x")
    got = unprepared(path=str(tmp_path))[0]["image"]
    assert got.shape == (4, 6, 3) and got.dtype == np.uint8
    assert abs(got.astype(int) - np.array(want)).max() <= 1


def test_a_transparent_palette_is_white(tmp_path):
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    save(tmp_path / "a.png", image, transparency=0)
    (tmp_path / "a.txt").write_text("x")
    got = unprepared(path=str(tmp_path))[0]["image"]
    assert got[0, 0].tolist() == [255] * 3 and got[1, 1].tolist() == list(RED)


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90° clockwise for display
    save(tmp_path / "a.jpg", image, exif=exif, quality=100)
    (tmp_path / "a.txt").write_text("x")
    got = unprepared(path=str(tmp_path))[0]["image"]
    assert (
        got.shape == (16, 8, 3) and got[:8].max() < 10 and got[8:].min() > 245
    )  # left goes to the top


def broken(kind):
    file, noise = (
        io.BytesIO(),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    )
    Image.fromarray(noise).save(file, "JPEG" if kind == "jpg" else "PNG")
    return {"empty": b"", "text": b"not an image"}.get(
        kind, file.getvalue()[: len(file.getvalue()) // 2]
    )


@pytest.mark.parametrize("kind", ["empty", "text", "png", "jpg"])
def test_one_broken_image_in_a_hundred_is_named_and_skipped(tmp_path, caplog, kind):
    make(tmp_path, [f"{i:03d}.png" for i in range(100)])
    (tmp_path / "050.png").write_bytes(broken(kind))
    with caplog.at_level(logging.WARNING):
        source = unprepared(path=str(tmp_path))
    assert (
        list(source.skipped) == ["050.png"] and len(source) == 99 and "050" not in captions(source)
    )
    assert len(caplog.records) == 1 and re.search(r"1 \(050.png: .+\) of the 100", caplog.text)
    assert [source[i]["item"] for i in (49, 50)] == ["049", "051"]


def test_more_broken_images_are_an_error(tmp_path):
    make(tmp_path, [f"{i:03d}.png" for i in range(100)])
    for name in ("007.png", "008.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 \(007.png: it is empty or no image, 008.png: [^)]*\) of the 100 images"
    ):
        unprepared(path=str(tmp_path))


def table(name, content):
    def write(root):
        make(root, ["a.png"], captions="")
        (root / name).write_bytes(content)

    return write


def bad_bytes(root):
    make(root)
    (root / "b.txt").write_bytes(b"fine\nbro\xffken\n")


CASES = {
    "there is no folder .*: captions are read from": lambda root: None,
    "no images": lambda root: root.mkdir() or (root / "readme.md").write_text("x"),
    "none of the 2 images": lambda root: make(root, captions=""),
    r"1 \(b.png: its caption is empty\) of the 2 images .* have no usable caption": lambda root: (
        make(root) and (root / "b.txt").write_text(" \n")
    ),
    r"1 \(b.png: b.txt, line 2 is not UTF-8 text \(byte 4 of the line\)\) of the 2 images .* have "
    r"no usable caption": bad_bytes,
    "line 1: file_name '../a.png' points outside": table(
        "metadata.jsonl", b'{"file_name": "../a.png", "text": "x"}'
    ),
    "line 1: file_name '/b/a.png' points outside": table(
        "metadata.jsonl", b'{"file_name": "/b/a.png", "text": "x"}'
    ),
    "b.png: it is not there, and line 2 of captions.csv names it": table(
        "captions.csv", b"file_name,text\nb.png,x\n"
    ),
    "line 1 is not JSON": table("metadata.jsonl", b"{'file_name'}"),
    "line 1: expected": table("metadata.jsonl", b'{"file_name": "a.png", "text": 3}'),
    "line 1 is not an object": table("metadata.jsonl", b'["a.png", "x"]'),
    "line 1 has no column of captions, only file_name, tags": table(
        "metadata.jsonl", b'{"file_name": "a.png", "tags": []}'
    ),
    "metadata.jsonl is not an image": table(
        "metadata.jsonl", b'{"file_name": "metadata.jsonl", "text": "x"}'
    ),
    "line 1 has no column of images, only picture, words": table(
        "captions.csv", b"picture,words\na.png,x\n"
    ),
    "line 2 has not as many columns": table(
        "captions.csv", b"file_name,text\na.png,red, and flat\n"
    ),
    "line 2 is not UTF-8": table("captions.csv", b"file_name,text\na.png,\xff\n"),
    "both metadata.jsonl and captions.csv": lambda root: (
        table("captions.csv", b"")(root),
        table("metadata.jsonl", b"")(root),
    ),
}


@pytest.mark.parametrize("message", CASES)
def test_bad_input_is_one_sentence(tmp_path, message):
    CASES[message](tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        unprepared(path=str(tmp_path / "set"))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_no_folder_at_all_is_one_sentence():
    with pytest.raises(
        UserError,
        match="folder.path is not set, pass --config.folder.path=DIR: captions are read from",
    ):
        unprepared(path="")


def test_splits_follow_the_path_alone(tmp_path):
    names = [f"{i:03d}.png" for i in range(200)]
    make(tmp_path / "one", names)
    make(tmp_path / "two", names[::2])
    one, two = (
        unprepared(path=str(tmp_path / name), held_out_items=0.2) for name in ("one", "two")
    )
    split = {record.item: record.split for record in one.records}
    assert (
        20 <= sum(s == "held_out_items" for s in split.values()) <= 60
        and "held_out_cells" not in split.values()
    )
    assert {record.item: record.split for record in two.records}.items() <= split.items()


def test_the_fingerprint_covers_images_captions_and_splits(tmp_path):
    path = make(tmp_path)
    prints = [
        unprepared(path=path).fingerprint,
        unprepared(path=path, held_out_items=0.999).fingerprint,
    ]
    assert unprepared(path=path).fingerprint == prints[0]
    (tmp_path / "a.txt").write_text("another caption")
    prints.append(unprepared(path=path).fingerprint)
    save(tmp_path / "b.png", Image.new("RGB", SIZE, "blue"))
    prints.append(unprepared(path=path).fingerprint)
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    "name,text",
    [
        ("a.caption", "red"),
        ("a.png.txt", "red"),
        ("a.png.caption", "red"),
        ("a.Txt", "red"),
        ("a.txt", "red".encode("utf-16")),
        ("a.txt", b"\xef\xbb\xbfred\r\n"),
    ],
)
def test_texts_beside_images_have_many_names(tmp_path, name, text):
    make(tmp_path, ["a.png"])
    (tmp_path / "a.txt").unlink()
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert unprepared(path=str(tmp_path)).records[0].captions == ("red",)


def test_names_in_another_unicode_form_belong_together(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make(tmp_path, [f"{decomposed}.png"])
    (tmp_path / f"{decomposed}.txt").unlink()
    (tmp_path / f"{composed}.txt").write_text("a cup")
    assert unprepared(path=str(tmp_path)).records[0].captions == ("a cup",)


def test_names_in_another_case_belong_together_unless_the_text_is_of_another_image(tmp_path):
    make(tmp_path, ["IMG_1.JPG", "B.png", "b.png", "c.png"])
    for name, new in (("IMG_1.txt", "img_1.txt"), ("c.txt", "C.TXT")):
        (tmp_path / name).rename(tmp_path / new)
    (tmp_path / "B.txt").unlink()
    for name in ("img_1.txt", "b.txt", "C.TXT"):
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError, match=r"1 \(B.png: it has no caption\)"):
        unprepared(path=str(tmp_path))
    (tmp_path / "B.png").unlink()
    assert captions(unprepared(path=str(tmp_path))) == {
        "IMG_1": ("img_1.txt",),
        "b": ("b.txt",),
        "c": ("C.TXT",),
    }


def test_a_text_file_can_be_one_caption_and_prose_is_told(tmp_path, caplog):
    make(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.txt").write_text("# A title\n\nA cat sits\non a mat.\n")
    (tmp_path / "b.txt").write_text("a dog\na brown dog\n")
    lines = unprepared(path=str(tmp_path))
    assert lines.records[0].captions == ("# A title", "A cat sits", "on a mat.")
    assert "the texts of 1 (a.png) images" in caplog.text and "folder.caption=file" in caplog.text
    caplog.clear()
    whole = unprepared(path=str(tmp_path), caption="file")
    assert [r.captions for r in whole.records] == [
        ("# A title A cat sits on a mat.",),
        ("a dog a brown dog",),
    ]
    assert not caplog.text
    with pytest.raises(UserError, match="folder.caption must be lines or file, got 'all'"):
        unprepared(path=str(tmp_path), caption="all")


def test_tables_lie_in_every_folder_and_have_many_columns(tmp_path):
    make(tmp_path, ["a/1.png", "b/2.png", "b/c/3.png"])
    for text in tmp_path.rglob("*.txt"):
        text.unlink()
    (tmp_path / "a/metadata.csv").write_text("id,image,caption\n7,1.png,one\n")
    (tmp_path / "b/metadata.jsonl").write_text(
        '{"file": "2.png", "prompt": ["two", null, "zwei"]}\n{"file": "c/3.png", "prompt": "three"}\n'
    )
    captions = {r.item: r.captions for r in unprepared(path=str(tmp_path)).records}
    assert captions == {"a/1": ("one",), "b/2": ("two", "zwei"), "b/c/3": ("three",)}


def test_columns_by_their_keys(tmp_path):
    make(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text("picture,words,text\na.png,these,not these\n")
    keys = dict(image_key="picture", text_key="words")
    assert unprepared(path=str(tmp_path), **keys).records[0].captions == ("these",)
    with pytest.raises(UserError, match="has no column of images, only picture, words, text"):
        unprepared(path=str(tmp_path), image_key="photo")


def test_rows_without_an_image_or_a_caption_are_listed_with_the_broken_images(tmp_path):
    make(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "red"}\n{"file_name": "b.png", "text": null}\n'
        '{"file_name": "gone.png", "text": "blue"}\n{"file_name": "c.png"}\n'
    )
    source = captioned_folder(path=str(tmp_path))
    assert [record.item for record in source.records] == ["a"]
    assert source.skipped == {
        "gone.png": "it is not there, and line 3 of metadata.jsonl names it",
        "b.png": "its caption is empty",
        "c.png": "its caption is empty",
    }


def test_a_table_of_something_else_beside_texts_is_ignored(tmp_path, caplog):
    make(tmp_path, ["a.png"], captions="red\n")
    (tmp_path / "a.TXT").write_text("not this one")
    (tmp_path / "metadata.csv").write_text("url,width\nx,3\n")
    assert unprepared(path=str(tmp_path)).records[0].captions == ("red",)
    assert "has no column of images, only url, width" in caplog.text and "ignored" in caplog.text


def test_what_lies_there_is_looked_at_before_it_is_refused(tmp_path):
    make(tmp_path, captions="")
    (tmp_path / "metadata.json").write_text("[]")
    with pytest.raises(UserError, match="there is metadata.json, which is not one of them"):
        captioned_folder(path=str(tmp_path))


def test_models_without_text_need_no_captions(tmp_path):
    make(tmp_path, ["cat/1.png", "cat/x/2.png", "ant/3.png"])
    for text in tmp_path.rglob("*.txt"):
        text.unlink()
    plain = captioned_folder(path=str(tmp_path), condition="none")
    assert len(plain) == 3 and not plain.skipped
    classes = captioned_folder(path=str(tmp_path), condition="class")
    found = {r.item: (r.label, r.captions) for r in classes.records}
    assert found == {
        "ant/3": (0, ("ant",)),
        "cat/1": (1, ("cat",)),
        "cat/x/2": (1, ("cat",)),
    }
    (tmp_path / "loose.png").write_bytes((tmp_path / "ant/3.png").read_bytes())
    with pytest.raises(UserError, match=r"1 \(loose.png\) of the images .* are in no folder of a"):
        captioned_folder(path=str(tmp_path), condition="class")


def test_the_documents_name_the_files_that_the_sources_ask_for():
    about = {
        "folder": LAYOUTS + "img.png img.txt condition.kind=class none folder.caption=file "
        "folder.image_key folder.text_key",
        "datasets": "",
        "cub": cub_flowers.CUB.about,
        "flowers": cub_flowers.FLOWERS.about,
        "coco": coco.ABOUT,
        "imagenet": imagenet.ABOUT,
        "ffhq": ffhq.ABOUT,
    }
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (.*) \|$",
            training.partition("| source | files |")[2].partition("\n\n")[0],
            re.M,
        )
    )
    assert rows.keys() == about.keys()
    for name, row in rows.items():
        assert [span for span in re.findall("`(.*?)`", row) if span not in about[name]] == []
    assert rows["ffhq"] in about["ffhq"]
