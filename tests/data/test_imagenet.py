"""ImageNet in small trees laid out as the archive."""

import collections

import pytest

from helpers.class_folders import SYNSETS, classes, save
from vqd_jax.core.errors import UserError
from vqd_jax.data.imagenet import imagenet
from vqd_jax.data.source import Source


def test_imagenet(tmp_path):
    classes(tmp_path)
    (tmp_path / "train/.DS_Store").write_bytes(b"x")
    source = imagenet(path=str(tmp_path))
    assert isinstance(source, Source) and source.skipped == {}
    assert collections.Counter((r.split, r.label, r.captions) for r in source.records) == {
        (split, k, (synset,)): n
        for k, synset in enumerate(SYNSETS)
        for split, n in (("train", 3), ("held_out_items", 2))
    }
    index = {record.item: i for i, record in enumerate(source.records)}
    assert len(index) == len(source) == 15
    example = source[index["n02123045/ILSVRC2012_val_00000001"]]
    assert (
        example["label"] == 2
        and example["split"] == "held_out_items"
        and example["image"].shape == (6, 8, 3)
    )
    assert abs(source[index["n01440764/n01440764_2"]]["image"].astype(int) - (160, 0, 0)).max() < 5


def test_a_relative_path_is_the_same_set(tmp_path, monkeypatch):
    classes(tmp_path)
    whole = imagenet(path=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert imagenet(path="./").fingerprint == whole.fingerprint


def test_imagenet_with_lists_holds_what_they_name(tmp_path):
    classes(tmp_path)
    whole = imagenet(path=str(tmp_path)).fingerprint
    (tmp_path / "ILSVRC2012_name_train.txt").write_text(
        "n02123045/n02123045_1.JPEG\ntrain/n01443537/n01443537_0.JPEG\n\n"
    )
    (tmp_path / "ILSVRC2012_name_val.txt").write_text("n01440764/ILSVRC2012_val_00000004.JPEG\n")
    source = imagenet(path=str(tmp_path))
    assert [(r.item, r.label, r.split) for r in source.records] == [
        ("n02123045/n02123045_1", 2, "train"),
        ("n01443537/n01443537_0", 1, "train"),
        ("n01440764/ILSVRC2012_val_00000004", 0, "held_out_items"),
    ]
    assert source.fingerprint != whole


def flat_validation(root):
    classes(root)
    save(root / "val" / "ILSVRC2012_val_00000099.JPEG")


def extra_synset(root):
    classes(root)
    save(root / "val" / "n09999999" / "x.JPEG")


def wrong_list(content):
    def act(root):
        classes(root)
        (root / "ILSVRC2012_name_val.txt").write_text(content)

    return act


def without(name):
    def act(root):
        classes(root)
        (root / name).rename(root / "elsewhere")

    return act


def packed(root):
    without("val")(root)
    (root / "val.tar").touch()


CASES = {
    r"there is no folder \S*/train: ImageNet is {train,val}/<synset>/<image>.JPEG, from "
    r"image-net.org": without("train"),
    r"there is no folder \S*/val: ImageNet is": without("val"),
    r"there is no folder \S*/val \(there is val.tar, which is not unpacked\): ImageNet": packed,
    r"1 \(ILSVRC2012_val_00000099.JPEG\) of the images in \S*/val are not in a folder of their "
    r"synset: .*sorted into folders": flat_validation,
    r"val has synsets that \S*/train lacks, 1 \(n09999999\): ImageNet is": extra_synset,
    r"there are no images in \S*/train": lambda root: (
        classes(root, training=0) or [(root / "train").mkdir()]
    ),
    r"ILSVRC2012_name_val.txt lists 1 \(n01440764/none.JPEG\) that are not in \S*/val": wrong_list(
        "n01440764/none.JPEG\n"
    ),
    r"there are no lines in \S*ILSVRC2012_name_val.txt": wrong_list("\n"),
}


@pytest.mark.parametrize("message", CASES)
def test_bad_imagenet_folders_are_one_sentence(tmp_path, message):
    CASES[message](tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        imagenet(path=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    classes(tmp_path)
    (tmp_path / "train/n01440764/n01440764_0.JPEG").write_bytes(b"not a picture")
    source = imagenet(path=str(tmp_path))
    assert source[1]["item"] == "n01440764/n01440764_1"
    with pytest.raises(
        UserError, match="the image train/n01440764/n01440764_0.JPEG in .* cannot be decoded"
    ):
        source[0]


def test_without_a_path_the_error_says_where_to_get_the_set():
    with pytest.raises(
        UserError, match="imagenet.path is not set, .* ImageNet is .* image-net.org"
    ):
        imagenet(path="")
