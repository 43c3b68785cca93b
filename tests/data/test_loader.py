"""Batches are a function of (seed, step): across processes, restarts, threads and epochs."""

import collections
import itertools
import threading
import time

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader, sequential


def load(item, rng):
    return {
        "item": np.int64(item),
        "draw": rng.random(2),
        "image": np.full((4, 4, 3), item % 256, np.uint8),
    }


def make(n=10, **kwargs):
    return Loader(list(range(n)), **{"batch_size": 4, "seed": 0, "load": load, **kwargs})


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_is_the_stack_of_its_examples():
    batch = make()[3]
    assert batch["image"].shape == (4, 4, 4, 3) and batch["image"].dtype == np.uint8
    assert batch["item"].shape == (4,) and batch["draw"].shape == (4, 2)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["item"])


def test_every_epoch_shows_every_item_once_in_a_new_order():
    loader = make(10, batch_size=5)
    epochs = [
        np.concatenate([loader[2 * e]["item"], loader[2 * e + 1]["item"]]).tolist()
        for e in range(6)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_an_epoch_that_does_not_divide_into_batches():
    items = np.concatenate([make(10)[step]["item"] for step in range(5)])  # 20 examples, 2 epochs
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))


def test_a_batch_may_be_larger_than_the_set():
    assert np.bincount(make(3, batch_size=8)[0]["item"]).min() >= 2


def test_without_shuffling_the_order_is_that_of_the_items():
    loader = make(10, shuffle=False)
    np.testing.assert_array_equal(
        np.concatenate([loader[s]["item"] for s in range(5)]), np.arange(20) % 10
    )


def test_same_seed_same_batches_and_other_seed_other_batches():
    same(make(100)[7], make(100)[7])
    other = make(100, seed=1)
    assert (make(100)[7]["item"] != other[7]["item"]).any()
    shifted = np.concatenate([other[s]["item"] for s in range(25)])
    assert all(
        (np.concatenate([make(100)[s + 25 * e]["item"] for s in range(25)]) != shifted).any()
        for e in range(3)
    )


def test_randomness_belongs_to_the_position():
    loader = make(3, batch_size=4)
    draws = np.concatenate([loader[s]["draw"] for s in range(50)])
    assert len(np.unique(draws)) == draws.size  # an item that comes again is drawn anew
    want = np.random.default_rng((0, 1, 4 * 7 + 2)).random(2)
    np.testing.assert_array_equal(loader[7]["draw"][2], want)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_one_global_batch(count):
    whole = make(100)
    parts = [make(100, process_index=p, process_count=count) for p in range(count)]
    for step in (0, 1, 30):
        rows = [part[step] for part in parts]
        assert all(len(r["item"]) == 4 // count for r in rows)
        same({k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, whole[step])
        for part in parts:
            same(part.global_batch(step), whole[step])


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_as_many_batches_load_at_once_as_there_are_threads(threads):
    inside, most = collections.Counter(), []

    def slow(item, rng):
        inside[threading.current_thread()] = 1
        most.append(sum(inside.values()))
        time.sleep(0.01)
        inside[threading.current_thread()] = 0
        return {"item": np.int64(item)}

    with make(100, load=slow, threads=threads).iterate() as batches:
        for _ in range(20):
            next(batches)
    assert max(most) == threads


def test_negative_numbers_of_threads_get_a_sentence():
    with pytest.raises(UserError, match="must not be negative, got -1 and 0"):
        make(threads=-1)


@pytest.mark.parametrize("start", [0, 3])
def test_iterating_equals_random_access(start):
    loader = make(100, process_index=1, process_count=2, threads=3)
    with loader.iterate(start) as batches:
        for step, batch in zip(range(start, start + 12), batches):
            same(batch, loader[step])


def test_prefetching_happens_in_the_background_and_stops():
    loaded, before = [], set(threading.enumerate())

    def slow(item, rng):
        loaded.append(threading.current_thread())
        return {"item": np.int64(item)}

    batches = make(100, load=slow, threads=2).iterate()
    next(batches)
    deadline = time.time() + 5
    while len(loaded) < 8 and time.time() < deadline:
        time.sleep(0.01)
    assert (
        len(loaded) >= 8 and threading.main_thread() not in loaded
    )  # at least one batch beyond the one taken
    batches.close()
    ours = lambda: [
        thread for thread in threading.enumerate() if thread not in before
    ]  # those of other tests may end meanwhile
    while ours() and time.time() < deadline:
        time.sleep(0.01)
    assert not ours()
    count = len(loaded)
    time.sleep(0.05)
    assert len(loaded) == count and list(batches) == []
    batches.close()


def test_an_error_in_load_reaches_the_reader():
    def broken(item, rng):
        raise UserError("item 3 is broken")

    with make(load=broken).iterate() as batches, pytest.raises(UserError, match="item 3"):
        next(batches)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"batch_size": 0},
        {"batch_size": 3, "process_count": 2},
        {"seed": -1},
        {"process_index": 1},
    ],
)
def test_bad_arguments(change):
    with pytest.raises(UserError):
        make(**change)


def test_steps_are_not_negative():
    with pytest.raises(IndexError):
        make()[-1]


@pytest.mark.parametrize("n", [8, 9, 11, 1])
def test_sequential_pads_the_last_batch(n):
    batches = list(sequential(range(n), 4, load))
    assert all(batch["image"].shape == (4, 4, 4, 3) for batch, _ in batches)
    valid = np.concatenate([batch["item"][:count] for batch, count in batches])
    np.testing.assert_array_equal(valid, np.arange(n))
    last, count = batches[-1]
    np.testing.assert_array_equal(last["item"][count:], np.full(4 - count, n - 1))


def test_sequential_draws_depend_on_the_index_alone():
    flat = lambda size: list(
        itertools.chain.from_iterable(b["draw"][:c] for b, c in sequential(range(7), size, load))
    )
    np.testing.assert_array_equal(flat(2), flat(3))
