"""Which numbers are bad, and which batches are left out."""

import json
import math

import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.train.guard import MIN_LOSSES, WINDOW, Fault, Guard, TrainingRecord

GUARD = dict(spike=10.0, tries=2, hang=0.0, hang_seconds=1.0)


@pytest.mark.parametrize(
    "values,said",
    [
        ({"loss": math.nan, "gradient_norm": 1.0}, "loss nan"),
        ({"loss": math.inf, "gradient_norm": 1.0}, "loss inf"),
        ({"loss": 1.0, "gradient_norm": -math.inf}, "gradient norm -inf"),
    ],
)
def test_numbers_that_are_not_finite(values, said):
    with pytest.raises(Fault, match=said) as fault:
        Guard(**GUARD | {"spike": 0.0}).check(7, values, values["loss"], [])
    assert fault.value.step == 7


@pytest.mark.parametrize(
    "usual,loss,bad",
    [
        (2.0, 21.9, False),
        (2.0, 22.1, True),
        (-1.0, 8.9, False),
        (-1.0, 9.1, True),
        (2.0, -90.0, False),
    ],
)
def test_a_jump_is_measured_from_the_median(usual, loss, bad):
    before = [usual] * MIN_LOSSES + [500.0] * (MIN_LOSSES - 1)  # fewer than half of them are odd
    check = lambda spike, before: Guard(**GUARD | {"spike": spike}).check(
        1, {"loss": loss, "gradient_norm": 1.0}, loss, before
    )
    if bad:
        with pytest.raises(Fault, match=f"loss {loss:.4g} after {usual:.4g}"):
            check(10.0, before)
    else:
        check(10.0, before)
    check(0.0, before)
    check(10.0, before[: MIN_LOSSES - 1])  # too few to know


@pytest.mark.parametrize(
    "wrong", [{"spike": -1.0}, {"tries": 0}, {"hang": -1.0}, {"hang_seconds": -1.0}]
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(UserError, match="guard"):
        Guard(**GUARD | wrong)


def test_steps_take_the_batches_that_are_left():
    record = TrainingRecord(Pace(8))
    for skipped in ([3], [0, 1], [4, 5, 9]):
        record.skip(skipped)
        left = [batch for batch in range(40) if batch not in record.skipped]
        assert [record.batch(step) for step in range(1, 30)] == left[:29]
    assert record.skipped == [0, 1, 3, 4, 5, 9]


def test_more_batches_each_time_but_none_before_the_checkpoint():
    record = TrainingRecord(Pace(8))
    assert [record.last_batches(first=4, step=7, count=count) for count in (1, 2, 4, 8)] == [
        [6],
        [5, 6],
        [4, 5, 6],
        [4, 5, 6],
    ]
    record.skip([5])
    assert record.last_batches(first=4, step=7, count=2) == [6, 7]


def test_a_record_comes_back_from_json():
    record = TrainingRecord(Pace(8))
    for i in range(WINDOW + 5):
        record.add({"loss": i / 3, "other": math.nan if i == 70 else 1.0}, i / 3)
    record.skip([2])
    again = TrainingRecord.from_json(json.loads(json.dumps(record.to_json())), 8)
    assert again == record and len(again.losses) == WINDOW
    again.add({"loss": 1.0}, 1.0)
    assert len(again.losses) == WINDOW and again.losses[-1] == 1.0
    assert again.pop_means()["other"] == 1.0 and again.pop_means() == {} and record.averages


def test_averages_are_exact_after_a_resume():
    values, record = [0.1 * i**1.5 for i in range(50)], TrainingRecord(Pace(8))
    for i, value in enumerate(values):
        record.add({"loss": value}, value)
        if i % 7 == 0:
            record = TrainingRecord.from_json(json.loads(json.dumps(record.to_json())), 8)
    total = 0.0
    for value in values:
        total += value
    assert record.pop_means() == {"loss": total / 50}


def test_records_of_earlier_versions_list_all_values():
    stored = {"skipped": [3], "losses": [0.5], "window": {"loss": [0.1] * 10, "accuracy": [1.0]}}
    record = TrainingRecord.from_json(stored, 8)
    record.add({"loss": 2.1}, 2.1)
    assert record.pace == Pace(8) and record.skipped == [3] and [*record.losses] == [0.5, 2.1]
    assert record.pop_means() == {"loss": pytest.approx(3.1 / 11, rel=1e-15), "accuracy": 1.0}


@pytest.mark.parametrize("sizes", [(8, 16), (8, 4), (6, 9), (8, 16, 4, 10)], ids=str)
def test_every_example_is_used_once_whatever_the_batch_sizes(sizes):
    record, used = TrainingRecord(Pace(sizes[0])), []
    for i, size in enumerate(sizes):
        record.change_batch_size(size, 5 * i)
        record = TrainingRecord.from_json(json.loads(json.dumps(record.to_json())), 1)
        for step in range(5 * i + 1, 5 * i + 6):
            first = record.pace.position + record.batch(step) * size
            used += range(first, first + size)
        assert record.pace.examples_at(5 * i + 5) == len(used)
    assert used == [*range(len(used))]


def test_skipped_batches_that_lie_ahead_stay_skipped():
    record = TrainingRecord(Pace(8))
    record.skip([1, 5])  # examples 8 to 15 and 40 to 47
    assert [record.batch(step) for step in (1, 2, 3)] == [0, 2, 3]
    record.change_batch_size(12, 3)  # after examples 24 to 31, batch 3
    assert record.pace == Pace(12, step=3, examples=24, position=32)
    first = [record.pace.position + 12 * record.batch(step) for step in (4, 5)]
    assert first == [56, 68]  # 32 to 43 and 44 to 55 have skipped examples
