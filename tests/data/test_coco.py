"""MS-COCO in small trees laid out as the archive, and the errors when a part is missing."""

import collections
import json
import shutil

import pytest

from helpers.captioned_sets import colour, scenes, write
from vqd_jax.core.errors import UserError
from vqd_jax.data.coco import coco


@pytest.mark.parametrize("twice", [False, True])
def test_coco_has_an_item_for_every_annotation(tmp_path, twice):
    scenes(tmp_path, twice)
    source = coco(path=str(tmp_path))
    assert len(source) == 30 and collections.Counter(r.split for r in source.records) == {
        "train": 15,
        "held_out_items": 15,
    }
    assert (
        len({r.item for r in source.records}) == 30 and len({r.group for r in source.records}) == 6
    )
    assert len(source.unique_files()) == 6
    for i in (0, 4, 17, 29):
        record = source.records[i]
        picture, number = int(record.group.split("_")[2]), int(record.item.split("/")[1])
        assert (
            record.captions == (f"a man riding {picture} {number // 1000}.",)
            and number % 1000 == picture
        )
        assert record.split == ("train" if "train" in record.group else "held_out_items")
        assert abs(source[i]["image"].astype(int) - colour(picture)).max() <= 3


def of_2017(root):
    """The tree of 2017, whose files are named by their numbers."""
    scenes(root)
    for part in ("train", "val"):
        (root / f"{part}2014").rename(root / f"{part}2017")
        file = root / "annotations" / f"captions_{part}2014.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            name = f"{image['id']:012d}.jpg"
            (root / f"{part}2017" / image["file_name"]).rename(root / f"{part}2017" / name)
            image["file_name"] = name
        file.unlink()
        write(root / "annotations" / f"captions_{part}2017.json", json.dumps(content))


@pytest.mark.parametrize("beside", ["", "images", "annotations_trainval2014", "train2014.zip"])
def test_coco_of_2017(tmp_path, beside, caplog):
    of_2017(tmp_path)
    if beside == "images":
        for part in ("train2017", "val2017"):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / part).rename(tmp_path / "images" / part)
    elif beside.startswith("annotations"):
        inside = tmp_path / "annotations_trainval2017"
        inside.mkdir()
        (tmp_path / "annotations").rename(inside / "annotations")
    elif beside:
        write(tmp_path / beside, "")
    source = coco(path=str(tmp_path))
    assert len(source) == 30 and source.records[0].group == "000000000000"
    assert {r.group: r.split for r in source.records} == {
        f"{n:012d}": "train" if n < 500 else "held_out_items" for n in (0, 1, 2, 500, 501, 502)
    }
    assert abs(source[17]["image"].astype(int) - colour(502)).max() <= 3
    assert source.records[17].captions == ("a man riding 502 0.",) and not caplog.records


def test_of_two_whole_years_the_first_is_taken(tmp_path):
    scenes(tmp_path)
    alone = coco(path=str(tmp_path))
    of_2017(tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path, dirs_exist_ok=True)
    assert coco(path=str(tmp_path)).fingerprint == alone.fingerprint
    shutil.rmtree(tmp_path / "train2014")
    assert coco(path=str(tmp_path)).unique_files()[0] == "train2017/000000000000.jpg"


@pytest.mark.parametrize("year", ["2014", "2017"])
@pytest.mark.parametrize("tables", [True, False])
def test_of_val_alone_a_share_is_held_out(tmp_path, caplog, year, tables):
    """The same of each image, by its name, and that is said."""
    scenes(tmp_path, count=60) if year == "2014" else of_2017(tmp_path)
    shutil.rmtree(tmp_path / f"train{year}")
    if not tables:
        (tmp_path / "annotations" / f"captions_train{year}.json").unlink()
    source = coco(path=str(tmp_path))
    assert source.unique_files()[0].startswith(f"val{year}/")
    split = {}
    for record in source.records:
        assert split.setdefault(record.group, record.split) == record.split
    if year == "2014":
        assert len(split) == 60 and 1 <= [*split.values()].count("held_out_items") <= 15
    assert f"val{year} without train{year}: 10 % of its images are held out" in caplog.text
    assert len(caplog.records) == 1
    write(tmp_path / f"train{year}.zip", "")
    with pytest.raises(
        UserError,
        match=rf"train{year}( \(there is train{year}.zip, which is not unpacked\)|.json)",
    ):
        coco(path=str(tmp_path))


WRONG_FOLDERS = {
    r"captions_train2017.json \(there is annotations_trainval2017.zip, which is not unpacked\)": (
        lambda root: (
            of_2017(root)
            or shutil.rmtree(root / "annotations")
            or write(root / "annotations_trainval2017.zip", "")
        )
    ),
    r"captions_train2014.json \(\S*/mine has annotations/captions_train2014.json: name that": (
        lambda root: scenes(root / "mine")
    ),
    r"captions_train2014.json \(there is captions_train2014.json\)": (
        lambda root: (
            scenes(root)
            or [file.rename(root / file.name) for file in (root / "annotations").iterdir()]
        )
    ),
    r"captions_train2014.json \(there is train2014.zip, which is not unpacked\)": (
        lambda root: root.mkdir() or write(root / "train2014.zip", "")
    ),
    r"captions_train2014.json \(there is metadata.json\)": (
        lambda root: root.mkdir() or write(root / "metadata.json", "{}")
    ),
}


@pytest.mark.parametrize("message", WRONG_FOLDERS)
def test_what_lies_there_is_said(tmp_path, message):
    WRONG_FOLDERS[message](tmp_path / "set")
    with pytest.raises(UserError, match=message):
        coco(path=str(tmp_path / "set"))


def test_the_folder_above_is_said(tmp_path):
    scenes(tmp_path)
    for inside in ("annotations", "val2014"):
        with pytest.raises(UserError, match=rf"\({tmp_path} has annotations and train2014 and val"):
            coco(path=str(tmp_path / inside))


def table(content):
    return lambda root: (
        scenes(root) or write(root / "annotations" / "captions_val2014.json", content)
    )


SCENES = {
    r"there is no file \S*annotations/captions_val2014.json: MS-COCO is annotations/.* "
    r"cocodataset.org": lambda root: (
        scenes(root) or (root / "annotations/captions_val2014.json").unlink()
    ),
    r"there is no folder \S*/val2014 \(there is val\): MS-COCO is": lambda root: (
        scenes(root) or (root / "val2014").rename(root / "val")
    ),
    r"val2014 lacks 1 \(COCO_val2014_000000000501.jpg\) of the images that "
    r"\S*captions_val2014.json names": lambda root: (
        scenes(root) or (root / "val2014/COCO_val2014_000000000501.jpg").unlink()
    ),
    r"captions_val2014.json is not a caption file of MS-COCO \(JSONDecodeError": table("{"),
    r"captions_val2014.json is not a caption file of MS-COCO \(KeyError: 'images'\)": table(
        '{"annotations": []}'
    ),
    r"captions_val2014.json is not a caption file of MS-COCO \(TypeError": table("[]"),
    r"there are no captions in \S*captions_val2014.json": table(
        '{"images": [], "annotations": []}'
    ),
    r"captions_val2014.json has captions of images that it does not list": table(
        '{"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": "x"}]}'
    ),
}


@pytest.mark.parametrize("message", SCENES)
def test_bad_coco_folders_are_one_sentence(tmp_path, message):
    SCENES[message](tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        coco(path=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_a_path_the_error_says_where_to_get_the_set():
    with pytest.raises(UserError, match="coco.path is not set, .* cocodataset.org"):
        coco(path="")
