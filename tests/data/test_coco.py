"""MS-COCO in small trees laid out as the archive, and the errors when a part is missing."""

import collections

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


def table(content):
    return lambda root: (
        scenes(root) or write(root / "annotations" / "captions_val2014.json", content)
    )


SCENES = {
    r"there is no file \S*annotations/captions_val2014.json: MS-COCO 2014 is annotations/.* "
    r"cocodataset.org": lambda root: (
        scenes(root) or (root / "annotations/captions_val2014.json").unlink()
    ),
    r"there is no folder \S*/val2014: MS-COCO 2014 is": lambda root: (
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
