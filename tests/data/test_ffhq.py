"""FFHQ in small trees laid out as the archive."""

import numpy as np
import pytest

from helpers.class_folders import classes, save
from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.ffhq import ffhq
from vqd_jax.data.source import Source


def test_files_are_named_by_relative_paths(tmp_path, monkeypatch):
    classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [ffhq(path=path).files[0] for path in (".", "train")] == [
        "train/n01440764/n01440764_0.JPEG",
        "n01440764/n01440764_0.JPEG",
    ]


@pytest.mark.parametrize("folder", ["", "images1024x1024/", "thumbnails128x128/"])
def test_ffhq_holds_out_the_last_ten_thousand(tmp_path, folder):
    numbers = (0, 7, 59_999, 60_000, 69_999)
    for n in numbers:
        save(
            tmp_path / folder / (f"{n // 1000 * 1000:05d}" if folder else "") / f"{n:05d}.png",
            (n % 256, 3, 4),
        )
    if folder == "images1024x1024/":
        save(tmp_path / "thumbnails128x128" / "00000" / "00000.png")
    source = ffhq(path=str(tmp_path))
    assert isinstance(source, Source) and len(source) == 5
    assert [r.split for r in source.records] == ["train"] * 3 + ["held_out_items"] * 2
    assert {(r.captions, r.label) for r in source.records} == {(("",), -1)}
    assert [int(r.item.split("/")[-1]) for r in source.records] == list(numbers)
    np.testing.assert_array_equal(source[1]["image"], np.broadcast_to([7, 3, 4], (6, 8, 3)))


def test_ffhq_with_other_names_holds_out_by_their_hash(tmp_path):
    for n in range(100):
        save(tmp_path / "faces" / f"face{n}.png")
    source = ffhq(path=str(tmp_path))
    held_out = {r.item for r in source.records if r.split == "held_out_items"}
    assert (
        held_out == {r.item for r in source.records if splits.unit("item", r.item) < 0.1}
        and 3 <= len(held_out) <= 20
    )


def test_bad_ffhq_folders_are_one_sentence(tmp_path):
    packed = tmp_path / "packed"
    for folder in (packed, tmp_path / "empty"):
        folder.mkdir()
    (packed / "images1024x1024.zip").touch()
    for path, message in (
        ("", "ffhq.path is not set, .*FFHQ is a folder of images"),
        (tmp_path / "none", "there is no folder"),
        (packed, r"in \S* \(there is images1024x1024.zip, which is not unpacked\): FFHQ is"),
        (tmp_path / "empty", "there are no images in .* github.com/NVlabs/ffhq-dataset"),
    ):
        with pytest.raises(UserError, match=message):
            ffhq(path=str(path))


def test_other_numbered_sets_are_split_by_a_hash(tmp_path):
    """CelebA's 202,599 files have six digits: FFHQ's rule would take 70 % of them away."""
    for i in (1, 30_000, 60_000, 69_999, 90_000, 202_599):
        save(tmp_path / f"{i:06d}.png")
    splits = {record.split for record in ffhq(path=str(tmp_path)).records}
    assert "train" in splits
    few = tmp_path / "few"
    for i in range(59_990, 60_010):
        save(few / f"{i:05d}.png")
    held = [r.item for r in ffhq(path=str(few)).records if r.split == "held_out_items"]
    assert held == [f"{i:05d}" for i in range(60_000, 60_010)]
