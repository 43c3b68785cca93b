"""Columns of images and captions are found by their types and names, or told."""

import datasets
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.dataset_columns import find_columns

TEXT, IMAGE, NUMBER = datasets.Value("string"), datasets.Image(), datasets.Value("int64")
CLASSES = datasets.ClassLabel(names=["cat", "dog"])
STRUCT = {"bytes": datasets.Value("binary"), "path": TEXT}
SHARD = {"jpg": IMAGE, "json": {"caption": TEXT, "width": NUMBER}, "__key__": TEXT, "__url__": TEXT}


def columns(features, image="", caption="", condition="text"):
    return find_columns(
        "a set",
        datasets.Features(features),
        image=image,
        caption=caption,
        condition=condition,
    )


@pytest.mark.parametrize(
    "features, options, image, text",
    [
        ({"image": IMAGE, "text": TEXT, "id": NUMBER}, {}, "image", "text"),
        ({"photo": IMAGE, "Caption": TEXT, "alt": TEXT}, {}, "photo", "Caption"),
        ({"pic": STRUCT, "captions": datasets.List(TEXT)}, {}, "pic", "captions"),
        ({"raw": datasets.Value("large_binary"), "prompt": TEXT}, {}, "raw", "prompt"),
        ({"a": IMAGE, "thumb": STRUCT, "text": TEXT}, {}, "a", "text"),
        ({"a": IMAGE, "thumb": STRUCT, "text": TEXT}, {"image": "thumb"}, "thumb", "text"),
        ({"a": IMAGE, "text": TEXT, "caption": TEXT}, {"caption": "text"}, "a", "text"),
        ({"a": IMAGE, "alt": TEXT}, {"caption": "alt"}, "a", "alt"),
        ({"a": IMAGE, "kind": CLASSES}, {"caption": "kind"}, "a", "kind"),
        ({"a": IMAGE, "kind": CLASSES, "text": TEXT}, {"condition": "class"}, "a", "kind"),
        ({"a": IMAGE, "text": TEXT}, {"condition": "none"}, "a", ""),
        (SHARD, {}, "jpg", "json.caption"),
        (SHARD | {"txt": TEXT}, {}, "jpg", "txt"),
        (SHARD | {"txt": TEXT}, {"caption": "json.caption"}, "jpg", "json.caption"),
        ({"cover.jpg": IMAGE, "txt": TEXT}, {}, "cover.jpg", "txt"),
    ],
)
def test_they_are_found(features, options, image, text):
    found = columns(features, **options)
    assert (".".join(found.image), ".".join(found.text)) == (image, text)


WRONG = [
    ({"a": IMAGE, "alt": TEXT}, {}, "no known column of captions: set datasets.caption to one"),
    (
        {"a": IMAGE, "text": NUMBER},
        {},
        r"no known column of captions.* a \(Image\), text \(int64\)",
    ),
    ({"a": IMAGE, "text": TEXT, "txt": TEXT}, {}, "several columns of captions: set datasets.cap"),
    ({"a": IMAGE, "b": IMAGE, "text": TEXT}, {}, "several columns of images: set datasets.image"),
    ({"url": TEXT, "text": TEXT}, {}, r"no known column of images: .*, url \(string\), text"),
    ({"a": IMAGE, "text": TEXT}, {"image": "text"}, r"no column text of images: .* a \(Image\)"),
    ({"a": IMAGE, "text": TEXT}, {"caption": "txet"}, "no column txet of captions"),
    (
        {"a": IMAGE, "text": TEXT},
        {"condition": "class"},
        r"no known column of classes \(ClassLabel",
    ),
    (
        {"a": IMAGE, "text": datasets.List(NUMBER), "s": STRUCT, "j": {"x": TEXT}},
        {},
        r".*text \(list of int64\), s \(struct\), j \(struct\), j\.x \(string\)$",
    ),
]


@pytest.mark.parametrize("features, options, message", WRONG)
def test_others_are_one_sentence_with_the_columns(features, options, message):
    with pytest.raises(UserError, match=f"^a set has {message}") as caught:
        columns(features, **options)
    assert "\n" not in str(caught.value)


def test_captions_of_a_row():
    found = columns({"a": IMAGE, "text": datasets.List(TEXT)})
    assert found.captions_in({"text": ["one  cat", None, "", "one cat", "a pet"]}) == (
        ("one cat", "a pet"),
        -1,
    )
    assert found.captions_in({"text": "a  dog"}) == (("a dog",), -1)
    assert found.captions_in({"text": None}) == found.captions_in({"text": []}) == ((), -1)
    inner = columns(SHARD)
    assert inner.captions_in({"json": {"caption": "a cat"}}) == (("a cat",), -1)
    assert inner.captions_in({"json": None}) == ((), -1)
    assert columns({"a": IMAGE}, condition="none").captions_in({}) == (("",), -1)


def test_the_class_of_a_row():
    found = columns({"a": IMAGE, "kind": CLASSES}, condition="class")
    assert found.captions_in({"kind": 1}) == (("dog",), 1)
    for unlabelled in (None, -1, 2):
        assert found.captions_in({"kind": unlabelled}) == ((), -1)
