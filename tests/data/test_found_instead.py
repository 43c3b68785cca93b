"""What is said of a folder that lacks what a data set needs."""

import pytest

from helpers.captioned_sets import save, write
from vqd_jax.core.errors import UserError
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.data.found_instead import beside, found_instead
from vqd_jax.data.image_files import existing_folder


@pytest.mark.parametrize(
    "there,missing,said",
    [
        ([], ["images"], ""),
        (["notes"], ["images"], ""),
        (["a", ".hidden.zip"], ["val2014"], ""),
        (["val"], ["val2014"], "there is val"),
        (["val_2014", "annotations"], ["val2014"], "there is val_2014"),
        (["train2014"], ["val2014"], ""),  # which is no other name of it
        (["b.zip", "val2014.zip"], ["val2014"], "there is val2014.zip, which is not unpacked"),
        (["Val", "b.zip"], ["val2014"], "there is Val"),
        (["b.TAR.GZ", "t.json"], ["val2014"], "there is b.TAR.GZ, which is not unpacked"),
        (["metadata.json"], ["val2014"], "there is metadata.json"),
        (["captions_val2014.json"], ["annotations/captions_val2014.json"], "there is captions_val"),
        (["mine/val2014/", "val"], ["val2014"], "{root}/mine has val2014: name that folder"),
        (["new\nline.zip"], ["val2014"], "there is new\\nline.zip, which is not unpacked"),
    ],
)
def test_what_resembles_it(tmp_path, there, missing, said):
    for name in there:
        write(tmp_path / name / "file" if name.endswith("/") else tmp_path / name, "")
    found = found_instead(tmp_path, missing, ["train2014", "val2014", "annotations"])
    said = said.format(root=tmp_path)
    assert found.startswith(f" ({said}") and found.endswith(")") if said else found == ""


@pytest.mark.parametrize(
    "there,said",
    [
        ([], ""),
        (["other/"], ""),
        (["my_pictures/"], " (there is my_pictures)"),
        (["my_picture.zip"], " (there is my_picture.zip, an archive that is not unpacked)"),
        (["my_picture.txt"], " (there is my_picture.txt, a file)"),
        (["my_picture", "my_pictures/"], " (there is my_picture, a file)"),
    ],
)
def test_a_folder_that_is_not_there(tmp_path, there, said):
    for name in there:
        write(tmp_path / name / "file" if name.endswith("/") else tmp_path / name, "")
    assert beside(tmp_path / "my_picture") == said
    with pytest.raises(UserError) as caught:
        existing_folder("folder", str(tmp_path / "my_picture"), "LAYOUT")
    assert str(caught.value) == f"there is no folder {tmp_path}/my_picture{said}: LAYOUT"


def test_the_folder_above_needs_more_than_one_entry_of_the_layout(tmp_path):
    (tmp_path / "images").mkdir()
    assert found_instead(tmp_path / "images", ["images"], ["images", "text"]) == ""
    (tmp_path / "text").mkdir()
    assert found_instead(tmp_path / "images", ["images"], ["images", "text"]) == (
        f" ({tmp_path} has images and text: name that folder)"
    )
    assert found_instead(tmp_path / "gone", ["images"]) == ""


def test_a_folder_of_archives_or_with_another_table_says_so(tmp_path):
    write(tmp_path / "train.tar", "")
    with pytest.raises(
        UserError, match=r"no images in \S* \(there is train.tar, which is not unpacked\); files"
    ):
        captioned_folder(path=str(tmp_path))
    save(tmp_path / "a.png")
    write(tmp_path / "metadata.json", "{}")
    with pytest.raises(
        UserError,
        match="; there is metadata.json, which is not one of them: write its entries to metadata.jsonl",
    ):
        captioned_folder(path=str(tmp_path))
