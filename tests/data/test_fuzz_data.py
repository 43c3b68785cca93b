"""Mutated images, captions and lists against every data source: a UserError of one line or a
result, whatever the bytes; no hang, no file outside of the folder.

A few examples in the ordinary tests, the same every time. A long run with new ones, for hours if
need be: VQD_FUZZ=100000 python -m pytest tests/data/test_fuzz_data.py
"""

import io
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import captioned_sets, class_folders
from helpers.fuzzing import (
    EDITS,
    fuzz,
    little_memory,
    mutated,
    only_user_errors,
    with_a_wrong_value,
)
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.data.coco import coco
from vqd_jax.data.cub_flowers import cub, flowers
from vqd_jax.data.decode_check import check_decoding
from vqd_jax.data.image_bytes import decode
from vqd_jax.data.imagenet import imagenet


def images():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    moving = {"save_all": True, "append_images": [rgb.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    kinds = [
        (rgb, "PNG", {}),
        (rgb, "PNG", moving),
        (rgb.quantize(9), "PNG", {"transparency": 2}),
        (rgb.convert("RGBA"), "PNG", {}),
        (Image.fromarray(rng.integers(0, 65536, (9, 13), dtype=np.uint16)), "PNG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "WEBP", {}),
        (rgb, "WEBP", moving | {"lossless": True}),
        (rgb, "GIF", moving),
        (rgb, "BMP", {}),
        (rgb.quantize(4), "BMP", {}),
        (rgb, "TIFF", moving),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("F"), "TIFF", {}),
    ]
    out = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        out.append(file.getvalue())
    return out


IMAGES = images()
TEXTS = [b"a red card\nanother\n", "\ufeffدراجة\r\n一只狗 👩‍🚀\r\n".encode(), b""]
JSONL = (
    b'{"file_name": "a.png", "text": "one"}\n'
    + b'{"file_name": "x/b.jpg", "text": ["two", "three"]}\n'
    + b'{"file_name": "../c.png", "text": ""}\n'
)
CSV = b'file_name,text\na.png,one\nx/b.jpg,"two, and ""three"""\n/etc/passwd,four\n'


@fuzz(400)
@given(st.sampled_from(IMAGES), EDITS)
def test_images(content, edits):
    content = mutated(content, edits)
    try:
        with little_memory():
            pixels = decode(content)
    except Exception:  # as it says; Files.decoded makes a UserError of it
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size


NAMES = st.sampled_from(
    [
        "a.png",
        "x/b.jpg",
        "x/y/c.webp",
        "A.GIF",
        "two words.bmp",
        "new\nline.tif",
        "ünïcödé.png",
        "بطة.jpeg",
        b"\xff\xfe.png".decode(errors="surrogateescape"),
        ".hidden.png",
        "x.png/d.png",
        "-.png",
        "a.txt.png",
    ]
)
CONTENTS = st.one_of(
    st.tuples(st.sampled_from(IMAGES), EDITS),
    st.tuples(st.sampled_from(IMAGES), st.just([])),
    st.tuples(st.just(b""), EDITS),
)


@fuzz(60)
@given(
    st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(TEXTS), EDITS), min_size=4, max_size=4),
    st.sampled_from([None, ("metadata.jsonl", JSONL), ("captions.csv", CSV)]),
    EDITS,
)
def test_folders(files, texts, table, edits):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        for (name, (content, changes)), (text, others) in zip(files.items(), texts):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(mutated(content, changes))
            if not table:
                (root / name).with_suffix(".txt").write_bytes(
                    mutated(text, others) if len(others) > 1 else text
                )
        if table:
            (root / table[0]).write_bytes(mutated(table[1], edits))
        with only_user_errors(place):
            source = captioned_folder(path=str(root))
            assert {*source.unique_files(), *source.skipped} <= {
                p.relative_to(root).as_posix() for p in root.rglob("*")
            }
            kept = source.without(
                {file: why for file in source.unique_files() if (why := source.fault(file))}
            )
            for i, record in enumerate(kept.records):
                assert (
                    record.captions
                    and all(caption.strip() for caption in record.captions)
                    and kept[i]["image"].size
                )
            check_decoding(source, place)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Name → (reader, its root, the files to be mutated)."""
    place = tmp_path_factory.mktemp("sets")
    for lists in ("pickle", "classes", "numbers"):
        captioned_sets.birds(
            place / f"cub-{lists}", "CUB_200_2011/images", lists=lists, per_class=1
        )
    captioned_sets.garden(place / "flowers", count=3)
    for part in ("train", "test"):
        (place / "flowers" / part).mkdir()
    (place / "flowers/train/filenames.pickle").write_bytes(
        pickle.dumps(["jpg/image_00001", "jpg/image_00002"], protocol=2)
    )
    (place / "flowers/test/filenames.pickle").write_bytes(
        pickle.dumps(["jpg/image_00003"], protocol=4)
    )
    captioned_sets.scenes(place / "coco", count=1)
    class_folders.classes(place / "imagenet", training=1, validation=1)
    for part in ("train", "val"):
        names = [
            p.relative_to(place / "imagenet" / part).as_posix()
            for p in (place / "imagenet" / part).glob("*/*")
        ]
        (place / f"imagenet/ILSVRC2012_name_{part}.txt").write_text("\n".join(names))
    readers = {
        "cub": cub,
        "flowers": flowers,
        "coco": coco,
        "imagenet": imagenet,
    }
    out = []
    for root in sorted(place.iterdir()):
        files = sorted(p for p in root.rglob("*") if p.is_file())
        tables = [p for p in files if p.suffix not in (".jpg", ".JPEG", ".h5")]
        out.append((readers[root.name.partition("-")[0]], root, tables * 3 + files[:1]))
    return out


@pytest.mark.slow  # 6 s; damaged sets have tests of their own
@fuzz(120)
@given(which=st.integers(0, 2**16), file=st.integers(0, 2**16), edits=EDITS)
def test_sets_of_the_paper(sets, which, file, edits):
    reader, root, files = sets[which % len(sets)]
    path = files[file % len(files)]
    content = path.read_bytes()
    path.write_bytes(mutated(content, edits))
    try:
        with only_user_errors(root), little_memory():
            source = reader(path=str(root))
            for file in source.unique_files():
                assert (
                    (root / file).exists()
                    or (root / "CUB_200_2011/images" / file).exists()
                    or (root / "jpg" / file).exists()
                )
                source.fault(file)
    finally:
        path.write_bytes(content)


def test_values_of_another_kind(sets):
    """Well-formed annotations with one wrong value."""
    root = next(root for reader, root, _ in sets if reader is coco)
    path = min((root / "annotations").iterdir())
    content = path.read_text()
    for changed in with_a_wrong_value(json.loads(content)):
        path.write_text(json.dumps(changed))
        with only_user_errors():
            coco(path=str(root))
    path.write_text(content)
