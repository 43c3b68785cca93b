"""Every kind of damage is named; the sums are those that sha256sum prints."""

import io
import json
import subprocess

import numpy as np
import pytest

from vqd_jax.core.checksums import (
    CHECKSUMS,
    SEAL,
    array_bytes,
    array_from,
    mismatch,
    seal,
    unsealed,
    write_checksums,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("top", "a/x", "a/deep/y", "ab/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    return tmp_path


def test_the_sums_are_sha256(folder):
    names = ["a/deep/y", "a/x", "ab/z", "top"]
    printed = subprocess.run(
        ["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads((folder / CHECKSUMS).read_text()) == {
        k: v for v, k in map(str.split, printed.splitlines())
    }


def test_whole_files_have_no_fault(folder):
    (folder / "top.part").write_text("of a write that was killed")
    (folder / "best.json").write_text("written later")
    (folder / "ab/another").write_text("not asked for")
    assert mismatch(folder, "a", beside=["best.json"]) is None


@pytest.mark.parametrize("name", ["best.json", "a/another", "a/deep/another"])
def test_sums_that_do_not_list_a_file_are_no_sums(folder, name):
    (folder / name).write_text("whose sum is lost")
    assert mismatch(folder, "a") == f"{CHECKSUMS} does not list {name}"


@pytest.mark.parametrize("name", ["top", "a/x", "a/deep/y"])
def test_damage_is_named(folder, name):
    (folder / name).write_text("other")
    assert mismatch(folder, "a") == f"{name} has changed since it was written"
    (folder / name).unlink()
    assert mismatch(folder, "a") == f"{name} is missing"


def test_other_subfolders_do_not_matter(folder):
    (folder / "ab/z").unlink()
    assert mismatch(folder, "a") is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_sums_that_are_none(folder, text):
    (folder / CHECKSUMS).write_text(text)
    assert mismatch(folder, "a") == f"{CHECKSUMS} is not readable"
    (folder / CHECKSUMS).unlink()
    assert (
        mismatch(folder, "a") == f"{folder / CHECKSUMS} cannot be read (No such file or directory)"
    )


ROW = {"step": 3, "time": 1.5, "train/loss": 0.25, "held_out/psnr": None}


@pytest.mark.parametrize("indent", [None, 1])
def test_any_flipped_bit_of_a_sealed_object_is_seen(indent):
    text = seal(json.dumps(ROW, indent=indent))
    assert unsealed(text) == unsealed(text + "\n") == ROW == unsealed(json.dumps(ROW))
    assert json.loads(text).keys() == {*ROW, SEAL}
    content = text.encode()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            value = unsealed(flipped.decode(errors="replace"))
        except ValueError:
            continue
        assert value == ROW  # white space outside of the values


@pytest.mark.parametrize("array", [np.arange(50, dtype=np.uint16), np.zeros((0, 3)), np.eye(2)])
def test_any_flipped_bit_of_a_sealed_array_is_seen(array):
    content = array_bytes(array)
    for required in (True, False):
        np.testing.assert_array_equal(array_from(content, required=required), array)
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError, match="has changed"):
                array_from(bytes(flipped), required=required)
    np.testing.assert_array_equal(np.load(io.BytesIO(content)), array)
    alone = content[:-32]
    np.testing.assert_array_equal(array_from(alone, required=False), array)
    with pytest.raises(ValueError, match="has changed"):
        array_from(alone)
