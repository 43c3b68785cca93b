"""The validation and the test half of a held-out split."""

import hashlib

from helpers.records import RecordsOnly
from vqd_jax.data import splits
from vqd_jax.data.batches import indices
from vqd_jax.data.source import Record

STYLES = ("google", "twitter", "openmoji")


# 500 groups in three styles; every tenth is held out as a whole, one style of each other
PAIRS = RecordsOnly(
    [
        Record(
            item=f"{i:x} in {style}",
            group=f"{i:x}",
            style=style,
            captions=("",),
            split="held_out_items" if i % 10 == 0 else "held_out_cells" if i % 3 == j else "train",
        )
        for i in range(500)
        for j, style in enumerate(STYLES)
    ]
)


def odd(*names):
    """The definition, written again: the first bit of SHA-256."""
    return hashlib.sha256("\x1f".join(["half", *names]).encode()).digest()[0] >= 128


def test_every_pair_is_in_the_half_of_its_hash():
    for split in ("held_out_cells", "held_out_items"):
        both = [indices(PAIRS, f"{split}/{half}") for half in splits.HALVES]
        assert sorted(sum(both, [])) == indices(PAIRS, split)
        for members, is_test in zip(both, (False, True)):
            assert abs(len(members) / len(indices(PAIRS, split)) - 0.5) < 0.14
            for i in members:
                record = PAIRS.records[i]
                names = [record.group] + [record.style] * (split == "held_out_cells")
                assert odd(*names) == is_test
    mixed = indices(PAIRS, "train", "held_out_items/test")
    assert set(indices(PAIRS, "train")) < set(mixed) and not {*mixed} & {*both[0]}


def test_a_group_that_is_held_out_is_in_one_half():
    for half in splits.HALVES:
        groups = [PAIRS.records[i].group for i in indices(PAIRS, f"held_out_items/{half}")]
        assert groups and all(groups.count(group) == len(STYLES) for group in groups)


def test_without_groups_the_items_are_halved():
    items = RecordsOnly(
        [Record(item=str(i), captions=("",), split="held_out_items") for i in range(99)]
    )
    first, second = (indices(items, f"held_out_items/{half}") for half in splits.HALVES)
    assert sorted(first + second) == list(range(99)) and min(len(first), len(second)) > 30
    assert all(not odd(str(i)) for i in first)
