"""Sets in TensorFlow Datasets' own features, written here without TensorFlow, hold what the
original trees hold.
"""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record, prepared
from vqd_jax.data.coco import coco
from vqd_jax.data.cub_flowers import cub, flowers

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def save(path, n):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(
        path
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build(folder, name, features, splits):
    """Writes a set as the builders of tensorflow-datasets do; returns its folder."""

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Written.name = name
    builder = Written(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def birds(root):
    """The original tree, and the same images as a TFDS set with another split."""
    names = [f"{cls}/{cls[4:]}_{i:04d}" for cls in CLASSES for i in range(3)]
    for n, name in enumerate(names):
        save(root / "tree/images" / f"{name}.jpg", n)
        save(root / "masks" / f"{n}.png", n)
        Image.new("L", (12, 8), n).save(root / "masks" / f"{n}.png")
        write(root / "tree/text" / f"{name}.txt", f"Bird {n}\nit flies\n")
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "label_name": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=200),
        "bbox": tfds.features.BBoxFeature(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }
    rows = [
        {
            "image": str(root / "tree/images" / f"{name}.jpg"),
            "image/filename": f"CUB_200_2011/images/{name}.jpg",
            "label": n // 3,
            "label_name": "x",
            "bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
            "segmentation_mask": str(root / "masks" / f"{n}.png"),
        }
        for n, name in enumerate(names)
    ]
    return names, build(
        root, "caltech_birds2011", features, {"train": rows[::2], "test": rows[1::2]}
    )


def same(one, other):
    assert one.records == other.records and len(one)
    for i in range(len(one)):
        np.testing.assert_array_equal(one[i]["image"], other[i]["image"])


def test_birds_are_joined_to_their_captions(tmp_path):
    names, path = birds(tmp_path)
    source = cub(path=path, captions=str(tmp_path / "tree/text"))
    assert [(r.item, r.split) for r in source.records] == [
        (n, "held_out_items" if i % 2 else "train") for i, n in enumerate(names)
    ]
    assert source.records[4].captions == ("bird 4", "it flies") and source.records[4].label == 1
    for part, own in (("train", names[:3]), ("test", names[3:])):
        (tmp_path / "tree" / part).mkdir()
        (tmp_path / "tree" / part / "filenames.pickle").write_bytes(pickle.dumps(own))
    joined = cub(path=path, captions=str(tmp_path / "tree"))
    same(joined, cub(path=str(tmp_path / "tree")))  # the pickles win
    assert joined.fingerprint != source.fingerprint
    same(prepared.prepare(str(tmp_path / "cache"), joined, None), joined)


def test_flowers_are_joined_to_their_captions(tmp_path):
    for n in range(1, 7):
        save(tmp_path / f"jpg/image_{n:05d}.jpg", n)
        write(
            tmp_path / f"captions/text_c10/class_{n % 2 + 1:05d}/image_{n:05d}.txt", f"Flower {n}"
        )
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=102),
        "file_name": tfds.features.Text(),
    }
    rows = [
        {
            "image": str(tmp_path / f"jpg/image_{n:05d}.jpg"),
            "label": 5,
            "file_name": f"image_{n:05d}.jpg",
        }
        for n in range(1, 7)
    ]
    path = build(
        tmp_path,
        "oxford_flowers102",
        features,
        {"train": rows[:2], "test": rows[2:4], "validation": rows[4:]},
    )
    source = flowers(path=path, captions=str(tmp_path / "captions"))
    assert [r.split for r in source.records] == ["train"] * 2 + ["held_out_items"] * 2 + [
        "train"
    ] * 2
    assert [(r.item, r.captions, r.label) for r in source.records[1:3]] == [
        ("image_00002", ("flower 2",), 0),
        ("image_00003", ("flower 3",), 1),
    ]
    want = np.asarray(Image.open(tmp_path / "jpg/image_00003.jpg"))
    np.testing.assert_array_equal(source[2]["image"], want)


def test_coco_is_the_original_set_whatever_its_split(tmp_path):
    tables = {
        "train2014": {"images": [], "annotations": []},
        "val2014": {"images": [], "annotations": []},
    }
    rows = []
    for n, part in enumerate(("train2014", "val2014", "val2014", "train2014")):
        name = f"COCO_{part}_{n:012d}.jpg"
        save(tmp_path / part / name, n)
        captions = [
            {"id": 10 * k + n, "image_id": n, "caption": f"A Café {n} {k} "} for k in (3, 1, 2)
        ]
        tables[part]["images"].append({"id": n, "file_name": name})
        tables[part]["annotations"] += captions
        box = {
            "id": 1,
            "area": 2,
            "bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
            "label": 3,
            "is_crowd": False,
        }
        rows.append(
            {
                "image": str(tmp_path / part / name),
                "image/filename": name,
                "image/id": n,
                "objects": [box] * n,
                "captions": [{"text": c["caption"], "id": c["id"]} for c in captions],
            }
        )
    for part, content in tables.items():
        write(tmp_path / "annotations" / f"captions_{part}.json", json.dumps(content))
    box = {
        "id": np.int64,
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(num_classes=80),
    }
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(box),
        "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
    }
    path = build(
        tmp_path,
        "coco_captions",
        features,
        {"train": rows[3:], "val": rows[1:2], "test": rows[2:3], "restval": rows[:1]},
    )
    source = coco(path=path)
    same(source, coco(path=str(tmp_path)))
    assert (
        len(source) == 12
        and len(source.unique_files()) == 4
        and source.records[0].captions == ("a café 0 1",)
    )


def other_format(path):
    info = Path(path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def cut(path):
    file = next(Path(path).glob("*train.array_record*"))
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage,message",
    [
        (
            other_format,
            r"stored as tfrecord, which needs TensorFlow: prepare it with tfds build "
            r"caltech_birds2011 --file_format=array",
        ),
        (
            cut,
            r"the prepared data set in \S* is damaged .*: prepare it again with "
            r"tensorflow-datasets",
        ),
        (
            lambda path: (Path(path) / "features.json").write_text("{"),
            "is damaged .*: prepare it again with tensorflow-datasets",
        ),
    ],
)
def test_bad_sets_are_one_sentence(tmp_path, damage, message):
    _, path = birds(tmp_path)
    text = str(tmp_path / "tree/text")
    with pytest.raises(
        UserError,
        match="has no captions, so cub.captions must name their folder: CUB-200 is .* StackGAN and "
        "DF-GAN",
    ):
        cub(path=path)
    with pytest.raises(
        UserError, match="is the TFDS set caltech_birds2011; expected oxford_flowers102"
    ):
        flowers(path=path, captions=text)
    shutil.copytree(path, tmp_path / "1.0.0")
    damage(tmp_path / "1.0.0")
    with pytest.raises(UserError, match=message):
        cub(path=str(tmp_path / "1.0.0"), captions=text)


def test_tensorflow_is_not_needed(tmp_path):
    _, path = birds(tmp_path)
    script = (
        "import sys; from vqd_jax.data.cub_flowers import cub\nsource = cub(path=sys.argv[1], "
        "captions=sys.argv[2])\n"
        "print(source[5]['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, str(tmp_path / "tree/text")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "(8, 12, 3) False", done.stderr


@pytest.mark.parametrize("form", ["proto", "snake", "legacy", "legacy_text"])
def test_no_module_that_a_set_names_is_imported(tmp_path, monkeypatch, form):
    """Also one level down, and in the form of earlier versions."""
    file = Path(birds(tmp_path)[1]) / "features.json"
    stranger = "planted_module.Feature"
    (tmp_path / "code").mkdir()
    write(tmp_path / "code" / "planted_module.py", "raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "code")
    feature = {
        "proto": {"pythonClassName": stranger, "text": {}},
        "snake": {"python_class_name": stranger, "text": {}},
        "legacy": {"type": stranger, "content": {}},
        "legacy_text": {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": json.dumps({"features": {"x": {"pythonClassName": stranger}}}),
        },
    }[form]
    stored = json.loads(file.read_text())
    if form.startswith("legacy"):
        stored = {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"image": feature},
        }
    else:
        stored["featuresDict"]["features"]["image"] = feature
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="names 'planted_module.Feature', which is no class of"):
        array_record.builder(file.parent)
    assert "planted_module" not in sys.modules
