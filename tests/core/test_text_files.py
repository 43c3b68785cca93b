"""Small files of text that were made to harm, and values in messages."""

import json

import pytest

from helpers import hostile
from vqd_jax.core import text_files
from vqd_jax.core.errors import UserError
from vqd_jax.core.text_files import read_json, read_text, read_yaml, shown


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    files = {name: ("yaml", content.encode()) for name, (content, _) in hostile.YAMLS.items()}
    return hostile.read(tmp_path_factory.mktemp("hostile"), files)


@pytest.mark.parametrize("name", hostile.YAMLS)
def test_no_yaml_takes_all_time_or_memory(said, name):
    assert hostile.YAMLS[name][1] in said[name]


def test_aliases_merged_keys_and_tuples_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "one: &one {x: 1}\ntwo: {<<: *one, y: !!python/tuple [8, 8]}\nthree: [*one, *one]"
    )
    assert read_yaml(tmp_path / "a.yaml") == {
        "one": {"x": 1},
        "two": {"x": 1, "y": (8, 8)},
        "three": [{"x": 1}, {"x": 1}],
    }
    (tmp_path / "b.yaml").write_text("")
    assert read_yaml(tmp_path / "b.yaml") is None


@pytest.mark.parametrize("levels", [text_files.DEPTH, text_files.DEPTH + 1])
def test_levels_of_yaml_are_counted_with_aliases(tmp_path, levels):
    (tmp_path / "a.yaml").write_text(
        "- &a0 [x]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, levels - 1))
    )
    if levels == text_files.DEPTH:
        assert len(read_yaml(tmp_path / "a.yaml")) == levels - 1
    else:
        with pytest.raises(UserError, match="more than 50 levels"):
            read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize(
    "content,sentence",
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"\xff\xfea", "is not text"),
        (b"[" * 10**5, "has more than 65,536 bytes|is not JSON"),
        (b"{a: ]", "is not (JSON|YAML)"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path, read, content, sentence):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path / "x")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="cannot read .*none"):
        read(tmp_path / "none")


def test_a_json_file_holds_an_object_of_a_reasonable_size(tmp_path, monkeypatch):
    (tmp_path / "x").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "x") == {"a": [1]}
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(UserError, match="holds a list, not an object"):
        read_json(tmp_path / "x")
    with pytest.raises(UserError, match="has more than 2 bytes"):
        read_text(tmp_path / "x", 2)
    assert read_text(tmp_path / "x", 3) == "[1]"


@pytest.mark.parametrize(
    "value,words",
    [
        ("a\nb", r"'a\nb'"),
        ("x" * 10**6, "'" + "x" * 99 + "…'"),
        (3, "3"),
        (-(2**64), "-18446744073709551616"),
        (1 << 20000, "a number of 20,001 bits"),
        (0.5, "0.5"),
        (None, "None"),
        (True, "True"),
        ([[]], "a list"),
        ((), "a tuple"),
    ],
    ids=range(10),
)
def test_a_value_in_a_message_is_short(value, words):
    assert shown(value) == words
