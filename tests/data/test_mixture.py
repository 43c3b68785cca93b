"""The shares of the parts in training: exact in every stretch, and every record equally often."""

import collections
import itertools

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader
from vqd_jax.data.mixture import Mixture, Order
from vqd_jax.data.source import Record

PARTS = ["original"] * 13 + ["mirrored"] * 4 + ["recoloured"] * 29 + ["pair"] * 7
RECORDS = [Record(item=str(i), captions=("a",), part=part) for i, part in enumerate(PARTS)]
SHARES = {"recoloured": 0.25, "pairs": 0.25, "pairs_from": 0.5}


def order(examples=1000, seed=0, **changes):
    return Mixture(**SHARES | changes).order(RECORDS, examples=examples, seed=seed)


def parts(order, positions):
    return collections.Counter(
        "original" if PARTS[i] == "mirrored" else PARTS[i] for i in map(order, positions)
    )


def test_every_stretch_has_the_shares():
    mixed = order()
    for start in range(500, 2000, 100):
        assert parts(mixed, range(start, start + 100)) == {
            "original": 50,
            "recoloured": 25,
            "pair": 25,
        }
    for start in range(500, 540):  # also a small batch, to within one example
        found = parts(mixed, range(start, start + 16))
        assert abs(found["original"] - 8) <= 1 and abs(found["recoloured"] - 4) <= 1


def test_before_there_are_pairs_the_other_parts_share_their_place():
    found = parts(order(examples=600), range(300))
    assert found == {"original": 200, "recoloured": 100}
    assert parts(order(examples=600), range(300, 400))["pair"] == 25
    assert parts(order(pairs_from=0.0), range(100))["pair"] == 25
    assert parts(order(pairs_from=1.0), range(1000))["pair"] == 0


def test_every_part_goes_through_its_records_in_epochs():
    """Also across the position at which pairs begin: as if its examples alone were counted."""
    mixed = order(examples=200)
    for names in (("original", "mirrored"), ("recoloured",), ("pair",)):
        mine = [i for i in map(mixed, range(1500)) if PARTS[i] in names]
        members = [i for i, part in enumerate(PARTS) if part in names]
        size = len(members)
        epochs = [mine[k * size : (k + 1) * size] for k in range(len(mine) // size)]
        assert len(epochs) > 4 and all(sorted(epoch) == members for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 0.9 * len(epochs)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.25, 0.25), (0.7, 0.3, 0.0), (0.0, 0.4, 0.6), (1 / 3, 1 / 3, 1 / 3)]
)
def test_counts_before_a_position_are_those_of_a_loop(shares):
    """Parts of one record each, in a first phase of 37 positions and a second one."""
    seen = collections.Counter()
    phases = ((0, shares), (37, shares[::-1]))
    one = Order([[0], [1], [2]], phases=phases, seed=0)
    many = Order([range(1000)] * 3, phases=phases, seed=0)
    for position in range(200):
        part = one(position)
        rng = np.random.default_rng((0, 0, 0, part))
        assert many(position) == rng.permutation(1000)[seen[part]]
        seen[part] += 1
    first = np.array([sum(one(p) == k for p in range(37)) for k in range(3)])
    second = np.array([sum(one(p) == k for p in range(37, 200)) for k in range(3)])
    assert (abs(first - 37 * np.array(shares)) < 1.01).all()
    assert (abs(second - 163 * np.array(shares[::-1])) < 1.01).all()


def test_a_loader_resumes_and_shards_a_mixture():
    load = lambda i, rng: {"i": np.int64(i), "draw": rng.random()}
    make = lambda **options: Loader(
        range(len(RECORDS)), batch_size=8, seed=5, load=load, order=order(seed=5), **options
    )
    loader = make()
    with loader.iterate(60) as batches:  # across position 500
        for step, batch in zip(range(60, 66), batches):
            np.testing.assert_array_equal(batch["i"], loader[step]["i"])
            np.testing.assert_array_equal(batch["draw"], make()[step]["draw"])
    halves = [make(process_index=p, process_count=2)[61]["i"] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), loader[61]["i"])
    positions = itertools.islice(itertools.count(), 100)
    assert [loader.index(p) for p in positions] != [order(seed=6)(p) for p in range(100)]


def test_without_shares_records_come_in_the_order_of_the_loader():
    assert Mixture(recoloured=0.0, pairs=0.0, pairs_from=0.5).order([], examples=9, seed=0) is None


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"recoloured": 0.9}, "fractions of at most 1 together, got 0.9 and 0.25"),
        ({"pairs": -0.1}, "fractions of at most 1"),
        ({"pairs_from": 1.5}, r"mixture.pairs_from must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_shares_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Mixture(**SHARES | changes)


def test_a_part_that_the_data_set_lacks_is_one_sentence():
    plain = [record for record in RECORDS if record.part != "pair"]
    with pytest.raises(UserError, match="gives pairs a share of 0.25, .*emoji.pairs"):
        Mixture(**SHARES).order(plain, examples=9, seed=0)
    Mixture(**SHARES | {"pairs": 0.0}).order(plain, examples=9, seed=0)
