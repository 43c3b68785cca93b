"""CUB-200 and Oxford-102 flowers in small trees laid out as the archives, and the errors when a part
is missing.
"""

import collections
import logging
import os
import pickle
import shutil

import numpy as np
import pytest

from helpers.captioned_sets import birds, colour, garden, save, write
from vqd_jax.core.errors import UserError
from vqd_jax.data.cub_flowers import cub, flowers
from vqd_jax.data.source import Source


def splits(source):
    return {record.item: record.split for record in source.records}


@pytest.mark.parametrize("images", ["images", "CUB_200_2011/images"])
@pytest.mark.parametrize("text", ["text", "text/text", "text_c10"])
def test_cub(tmp_path, images, text):
    names = birds(tmp_path, images, text)
    write(tmp_path / "attributes" / "attributes.txt", "1 has_bill_shape::curved")
    source = cub(path=str(tmp_path))
    assert isinstance(source, Source) and len(source) == 12 and source.skipped == {}
    assert [record.item for record in source.records] == names
    assert splits(source) == {
        name: "train" if n < 8 else "held_out_items" for n, name in enumerate(names)
    }
    assert [record.label for record in source.records] == [0] * 4 + [1] * 4 + [2] * 4
    example = source[5]
    assert set(example) == {"image", "captions", "item", "style", "split", "label"}
    assert (
        example["captions"] == ("a bird number 5.", "this one has a red crown")
        and example["style"] == ""
    )
    assert example["image"].shape == (8, 12, 3) and example["image"].dtype == np.uint8
    assert abs(example["image"].astype(int) - colour(5)).max() <= 3


def test_captions_may_be_elsewhere(tmp_path):
    names = birds(tmp_path / "all")
    (tmp_path / "captions").mkdir()
    for part in ("text", "train", "test"):
        (tmp_path / "all" / part).rename(tmp_path / "captions" / part)
    path = str(tmp_path / "all")
    for place in ("captions", "captions/text/text"):
        source = cub(path=path, captions=str(tmp_path / place))
        assert len(source) == 12 and source.records[3].captions[0] == "a bird number 3."
    assert (
        splits(cub(path=path, captions=str(tmp_path / "captions")))[names[-1]] == "held_out_items"
    )


@pytest.mark.parametrize(
    "lists,held_out", [("classes", lambda n: n >= 8), ("numbers", lambda n: n % 2)]
)
def test_cub_without_pickles_has_the_other_lists(tmp_path, caplog, lists, held_out):
    for images in ("images", "CUB_200_2011/images"):
        names = birds(tmp_path / images, images, lists=lists)
        source = cub(path=str(tmp_path / images))
        assert splits(source) == {
            name: "held_out_items" if held_out(n) else "train" for n, name in enumerate(names)
        }
    assert not caplog.records


def test_without_any_list_a_hash_decides_and_says_so(tmp_path, caplog):
    birds(tmp_path, lists="", per_class=100)
    with caplog.at_level(logging.WARNING):
        source = cub(path=str(tmp_path))
    counts = collections.Counter(record.split for record in source.records)
    assert counts.keys() == {"train", "held_out_items"} and 15 < counts["held_out_items"] < 45
    assert (
        len(caplog.records) == 1
        and "no list of an official split" in caplog.text
        and "10 % of cub" in caplog.text
    )
    assert splits(cub(path=str(tmp_path))) == splits(source)


def test_images_in_neither_list_are_left_out_and_named(tmp_path, caplog):
    names = birds(tmp_path)
    write(tmp_path / "train" / "filenames.pickle", pickle.dumps(names[:7], protocol=2))
    with caplog.at_level(logging.WARNING):
        source = cub(path=str(tmp_path))
    assert len(source) == 11 and f"1 ({names[7]}) images of cub are in neither list" in caplog.text
    assert [source[i]["item"] for i in (6, 7)] == [names[6], names[8]] and source[7]["captions"][
        0
    ] == "a bird number 8."
    assert abs(source[7]["image"].astype(int) - colour(8)).max() <= 3


def renamed(root, rename, what="text/text"):
    for folder in sorted((root / what).iterdir()):
        folder.rename(folder.with_name(rename(folder.name)))


@pytest.mark.parametrize(
    "rename",
    [
        str.lower,
        lambda name: name.partition(".")[0],
        lambda name: f"class_{int(name.partition('.')[0])}",
    ],
)
@pytest.mark.parametrize("what", ["text/text", "images"])
@pytest.mark.parametrize("lists", ["pickle", "numbers"])
def test_class_folders_of_other_names_are_joined_by_number(tmp_path, rename, what, lists):
    names = birds(tmp_path, lists=lists)
    usual = cub(path=str(tmp_path))
    renamed(tmp_path, rename, what)
    source = cub(path=str(tmp_path))
    same = lambda record: (record.captions, record.split, record.label)
    assert sorted(map(same, source.records)) == sorted(map(same, usual.records))
    if what == "text/text":
        assert [record.item for record in source.records] == names
        assert source.fingerprint == usual.fingerprint


def test_names_of_images_are_joined_whatever_their_case(tmp_path):
    names = birds(tmp_path)
    for file in (tmp_path / "text/text").glob("*/*.txt"):
        file.rename(file.with_name(file.name.lower()))
    assert [record.item for record in cub(path=str(tmp_path)).records] == names


def test_folders_of_one_number_are_not_joined_by_it(tmp_path):
    """Only by name; the captions of the other would be those of another class."""
    birds(tmp_path)
    folder = tmp_path / "images" / "001.Black_footed_Albatross"
    shutil.copytree(folder, folder.with_name("001.Other"))
    with pytest.raises(
        UserError, match=r"the class folders 1 \(001.Other\) in \S*/images have no partner among"
    ):
        cub(path=str(tmp_path))


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


def test_pickles_of_python_2_are_read_and_nothing_else_runs(tmp_path):
    names = birds(tmp_path)
    old = (
        b"(lp0\n"
        + b"".join(b"S'%s'\np%d\na" % (name.encode(), n + 1) for n, name in enumerate(names[:8]))
        + b"."
    )
    new = (
        b"\x80\x02]q\x01("
        + b"".join(b"U" + bytes([len(name)]) + name.encode() for name in names[:8])
        + b"e."
    )
    for content in (old, new):
        write(tmp_path / "train" / "filenames.pickle", content)
        assert collections.Counter(splits(cub(path=str(tmp_path))).values()) == {
            "train": 8,
            "held_out_items": 4,
        }
    for content, found in (
        (pickle.dumps([Evil()]), r"the global posix.getcwd"),
        (pickle.dumps({"a": 1}), "$"),
        (pickle.dumps([1, 2]), "$"),
        (old[:-20], "opcode argument must be quoted"),
        (b"", "damaged"),
        (b"rubbish", "damaged"),
    ):
        write(tmp_path / "train" / "filenames.pickle", content)
        with pytest.raises(
            UserError, match=f"train/filenames.pickle is not a pickled list of file names.*{found}"
        ):
            cub(path=str(tmp_path))


@pytest.mark.parametrize("text", ["text_c10", "text", "text/text"])
@pytest.mark.parametrize("lists", ["pickle", "classes"])
def test_flowers(tmp_path, text, lists):
    garden(tmp_path, text)
    if lists == "pickle":
        write(
            tmp_path / "train" / "filenames.pickle",
            pickle.dumps([f"jpg/image_{n:05d}" for n in (1, 2, 4, 5)], protocol=1),
        )
        write(
            tmp_path / "test" / "filenames.pickle",
            pickle.dumps(["jpg/image_00003", "image_00006.jpg"], protocol=4),
        )
    else:
        write(tmp_path / "trainvalclasses.txt", "class_00002\nclass_00003\n")
        write(tmp_path / "testclasses.txt", "class_00001")
    source = flowers(path=str(tmp_path))
    assert [(r.item, r.label, r.captions) for r in source.records[:3]] == [
        ("image_00001", 1, ("flower 1",)),
        ("image_00002", 2, ("flower 2",)),
        ("image_00003", 0, ("flower 3",)),
    ]
    assert [r.item[-1] for r in source.records if r.split == "held_out_items"] == [
        "3",
        "6",
    ] and len(source) == 6
    assert abs(source[3]["image"].astype(int) - colour(4)).max() <= 3


def remove(*names):
    def act(root):
        birds(root)
        for name in names:
            (root / name).rename(root.parent / name.replace("/", "-"))

    return act


def listing_a_ghost(root):
    birds(root)
    write(root / "test" / "filenames.pickle", pickle.dumps(["010.Red_winged_Blackbird/ghost"]))


def another_class(root):
    birds(root)
    renamed(root, lambda name: name.replace("002.Laysan", "203.Other"))


def no_caption(root):
    birds(root)
    write(next((root / "text").glob("text/*/*.txt")), b"\xff\xfe\n\n")


def one_text_gone(root):
    birds(root)
    min((root / "text").glob("text/*/*.txt")).unlink()


def foreign_lists(root):
    birds(root, lists="classes")
    for name in ("trainvalclasses.txt", "testclasses.txt"):
        write(root / name, "class_00001\n")


def crooked_numbers(root):
    birds(root, lists="numbers")
    write(root / "train_test_split.txt", "1 1\n2\n")


CUB = {
    r"there is no folder .*: CUB-200 is images/<class>/.* Caltech CUB-200-2011 archive, and "
    r"text/.* StackGAN and DF-GAN": lambda root: None,
    r"there is no folder \S*/set/images: CUB-200 is images/": remove("images"),
    r"there are no images in \S*/set/images: CUB-200 is": lambda root: (
        birds(root) and [p.unlink() for p in root.rglob("*.jpg")]
    ),
    r"there are no caption files in \S*/set/text, its folder text, or text_c10: "
    r"CUB-200 is": remove("text"),
    r"^1 \(001.Black_footed_Albatross/\S*.jpg\) of the 12 images in \S*/images have no caption "
    r"file: CUB-200 is": one_text_gone,
    r"there is no caption in \S*.txt: one a line": no_caption,
    r"the class folders 1 \(002.Laysan_Albatross\) in \S*/images have no partner among those of "
    r"the captions, by name or by number: CUB-200 is": another_class,
    r"no folder \S*/images \(there is CUB_200_2011.tgz, which is not unpacked\): CUB-200": (
        lambda root: root.mkdir() or write(root / "CUB_200_2011.tgz", "")
    ),
    r"no folder \S*/images \(\S*/set/birds has images: name that folder\): CUB-200": (
        lambda root: birds(root / "birds")
    ),
    r"no caption files in .*text_c10 \(there is text.zip, which is not unpacked\): CUB-200": (
        lambda root: remove("text")(root) or write(root / "text.zip", "")
    ),
    r"there is no \S*test/filenames.pickle beside \S*train/filenames.pickle: a split needs "
    r"both": remove("test"),
    r"there is no \S*testclasses.txt beside \S*trainvalclasses.txt": lambda root: (
        birds(root, lists="classes") and (root / "testclasses.txt").unlink()
    ),
    r"test/filenames.pickle lists 1 \(010.Red_winged_Blackbird/ghost\) that are not among the "
    r"images": listing_a_ghost,
    r"the lists of the split of cub in \S* name none of its images": foreign_lists,
    r"images.txt and \S*train_test_split.txt do not number the same images": crooked_numbers,
}


@pytest.mark.parametrize("message", CUB)
def test_bad_cub_folders_are_one_sentence(tmp_path, message):
    CUB[message](tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        cub(path=str(tmp_path / "set"))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "make,where",
    [
        (cub, r"cub.path is not set, .*CUB-200 is .* Caltech CUB-200-2011 archive"),
        (
            flowers,
            r"flowers.path is not set, .*.* robots.ox.ac.uk/~vgg/data/flowers/102, and text_c10/.* "
            r"reedscot/cvpr2016",
        ),
    ],
)
def test_without_a_path_the_error_says_where_to_get_the_set(make, where):
    with pytest.raises(UserError, match=where):
        make(path="")


def test_bad_flowers_folders_are_one_sentence(tmp_path):
    garden(tmp_path)
    with pytest.raises(
        UserError, match="there is no folder .*/captions: Oxford-102 flowers is jpg/image_00001.jpg"
    ):
        flowers(path=str(tmp_path), captions=str(tmp_path / "captions"))
    (tmp_path / "text_c10").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"there are no caption files in .*: Oxford-102 flowers is"):
        flowers(path=str(tmp_path))
    assert len(flowers(path=str(tmp_path), captions=str(tmp_path / "elsewhere"))) == 6
    (tmp_path / "jpg").rename(tmp_path / "jpeg")
    with pytest.raises(
        UserError, match=r"there is no folder \S*/jpg \(there is jpeg\): Oxford-102 flowers is"
    ):
        flowers(path=str(tmp_path))


def test_a_broken_image_is_named_when_it_is_read_and_not_before(tmp_path):
    names = birds(tmp_path)
    file = tmp_path / "images" / f"{names[2]}.jpg"
    file.write_bytes(file.read_bytes()[:200])
    source = cub(path=str(tmp_path))
    assert source[1]["item"] == names[1]
    with pytest.raises(
        UserError, match=rf"the image {names[2]}.jpg in \S*/images cannot be decoded .*vqd prepare"
    ):
        source[2]
    file.unlink()
    with pytest.raises(
        UserError,
        match=rf"{names[2]}.jpg in \S*/images cannot be decoded \(No such file or directory\)",
    ):
        source[2]


def test_the_fingerprint_covers_files_captions_and_splits_but_not_the_path(tmp_path):
    prints = []

    def look(root):
        prints.append(cub(path=str(root)).fingerprint)

    names = birds(tmp_path / "a")
    look(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    look(tmp_path / "b")
    assert prints[0] == prints.pop()
    write(tmp_path / "b/text/text" / f"{names[0]}.txt", "another")
    look(tmp_path / "b")
    save(tmp_path / "b/images" / f"{names[0]}.jpg", size=(64, 64))
    look(tmp_path / "b")
    write(tmp_path / "b/train/filenames.pickle", pickle.dumps(names[:7] + names[8:9]))
    write(tmp_path / "b/test/filenames.pickle", pickle.dumps(names[7:8] + names[9:]))
    look(tmp_path / "b")
    assert len(set(prints)) == 4
