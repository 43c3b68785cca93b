"""The splits are exact, stable and leave every group and style in training."""

import collections
import hashlib

import pytest

from vqd_jax.data import splits

STYLES = ("google", "twitter", "openmoji")
CELLS = [(f"{i:x}", style) for i in range(4000) for style in STYLES]


def draw(*parts):
    """The definition, written again: 48 bits of SHA-256."""
    return int(hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12], 16) / 2**48


def test_shares_are_as_requested():
    count = collections.Counter(
        splits.assign(CELLS, held_out_cells=0.1, held_out_items=0.03).values()
    )
    assert (
        abs(count["held_out_items"] / len(CELLS) - 0.03) < 0.01
    )  # 3.7 standard errors of 4000 groups
    rest = count["held_out_cells"] + count["train"]
    assert abs(count["held_out_cells"] / rest - 0.1) < 0.011  # 4 standard errors of 12000 cells


def test_every_cell_follows_its_hash():
    split = splits.assign(CELLS, held_out_cells=0.3, held_out_items=0.1)
    kept = 0
    for group in {group for group, _ in CELLS}:
        if draw("item", group) < 0.1:
            assert {split[group, style] for style in STYLES} == {"held_out_items"}
            continue
        draws = {style: draw("cell", group, style) for style in STYLES}
        out = {style for style in STYLES if draws[style] < 0.3}
        if len(out) == 3:
            out.remove(max(draws, key=draws.get))
            kept += 1
        assert {style for style in STYLES if split[group, style] == "held_out_cells"} == out
    assert kept > 50  # about 2.7 % of the groups


def test_held_out_cells_are_of_seen_groups_and_styles():
    split = splits.assign(CELLS, held_out_cells=0.9, held_out_items=0.1)
    trained = {group for (group, _), s in split.items() if s == "train"}
    assert trained == {group for (group, _), s in split.items() if s != "held_out_items"}


def test_a_group_with_one_style_is_never_a_held_out_cell():
    split = splits.assign(
        [(g, s) for g, s in CELLS if s == "google"], held_out_cells=0.99, held_out_items=0.0
    )
    assert set(split.values()) == {"train"}


@pytest.mark.parametrize("keep", [lambda i: i % 2, lambda i: i < 100])
def test_other_groups_do_not_matter(keep):
    whole = splits.assign(CELLS, held_out_cells=0.1, held_out_items=0.03)
    some = [cell for cell in reversed(CELLS) if keep(int(cell[0], 16))]
    part = splits.assign(some, held_out_cells=0.1, held_out_items=0.03)
    assert part == {cell: whole[cell] for cell in some}


def test_known_emoji_keep_their_split():
    """Published numbers rest on these: the google red apple is a held-out pair, the burrito a
    held-out item.
    """
    groups = [
        "1f34e",
        "1f419",
        "1f680",
        "1f62d",
        "1f32f",
        "1f981",
    ]  # apple, octopus, rocket, tears, burrito, lion
    split = splits.assign(
        [(g, s) for g in groups for s in STYLES], held_out_cells=0.1, held_out_items=0.03
    )
    assert {cell: s for cell, s in split.items() if s != "train"} == {
        ("1f34e", "google"): "held_out_cells"
    } | {("1f32f", style): "held_out_items" for style in STYLES}
