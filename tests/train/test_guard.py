"""Which numbers are bad, and which batches are left out."""

import json
import math

import numpy as np
import pytest

from helpers import ROOT
from helpers.toy_training import train
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.runtime.log import read_metrics
from vqd_jax.train.guard import MIN_LOSSES, MOST, WINDOW, Fault, Guard, TrainingRecord

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
        Guard(**GUARD | {"spike": 0.0}).check(7, values, values["loss"], losses_of([]))
    assert fault.value.step == 7


def losses_of(losses):
    record = TrainingRecord(Pace(8))
    for loss in losses:
        record.add({}, loss)
    return record


def check(loss, record, spike=10.0, step=1):
    values = {"loss": loss, "gradient_norm": 1.0}
    Guard(**GUARD | {"spike": spike}).check(step, values, loss, record)


@pytest.mark.parametrize(
    "usual,highest,loss,bad",
    [
        (2.0, 2.0, 19.9, False),
        (2.0, 2.0, 20.1, True),
        (2.0, 60.0, 199.0, False),  # its peak of 30 is somewhat forgotten
        (2.0, 60.0, 601.0, True),
        (0.0, 0.0, 9e-6, False),
        (0.0, 0.0, 2e-5, True),
        (-1.0, -1.0, 9.9, False),
        (-1.0, -1.0, 10.1, True),
        (2.0, 2.0, -90.0, False),
    ],
)
def test_a_spike_is_measured_by_the_median_and_the_highest_loss(usual, highest, loss, bad):
    record = losses_of([usual] * 4 + [highest] + [usual] * (MIN_LOSSES - 5))
    if bad:
        after = max(abs(usual), 1e-6)
        with pytest.raises(Fault, match=f"loss {loss:.4g} after {after:.4g}") as fault:
            check(loss, record)
        assert fault.value.spike
        record.peak *= 10  # as after a roll-back
    check(loss, record)
    check(loss, record, spike=0.0)
    check(1e9, losses_of([usual] * (MIN_LOSSES - 1)))  # too few to know


def test_lower_losses_are_bad_if_they_stay():
    usual = [1.0, 1.1, 0.9, 1.0] * 20
    for high, found in ((3.0, False), (3.4, True), (9.0, True)):
        after = [high] * 5 + [1.0] * 6 + [high] * 30
        at = first_fault(after, losses_of(usual))
        assert at == ((MOST + 5, 0) if found else None)  # the fault begins with the first of them


def first_fault(losses, record):
    """(steps until the first fault, its own step, from 0); None if there is none."""
    for i, loss in enumerate(losses):
        try:
            check(loss, record, step=i)
        except Fault as fault:
            return i, fault.step
        record.add({}, loss)
    return None


def memorised(rng, n, share=0.2):
    """As an adapter's that knows its images: one batch in five has 120 times the median."""
    high = rng.random(n) < share
    return 0.003 * np.exp(rng.normal(np.where(high, 4.8, 0.0), np.where(high, 0.7, 0.55)))


def correlated(rng, n):
    noise = rng.normal(size=n)
    for i in range(1, n):
        noise[i] = 0.9 * noise[i - 1] + 0.44 * noise[i]
    return np.exp(0.3 * noise)


HEALTHY = {
    "steady": lambda rng, n: np.exp(0.2 * rng.normal(size=n)),
    "lognormal": lambda rng, n: 0.003 * np.exp(1.7 * rng.normal(size=n)),
    "memorised": memorised,
    "correlated": correlated,
}
LOGS = {
    "emoji codec": ("emoji/vqvae", "train/l1"),
    "emoji denoiser": ("emoji/diffusion", "train/loss"),
    "emoji64 codec": ("emoji64/vqvae", "train/l1"),
}


def logged(name):
    """The losses of a shipped run, means of 20 steps."""
    folder, key = LOGS[name]
    return [row[key] for row in read_metrics(ROOT / "pretrained" / folder) if key in row]


def steps_of(name, rng):
    """Its losses between, with the noise of single steps."""
    values = np.log(logged(name))
    at = np.arange(100, 20 * len(values))
    return np.exp(
        np.interp(at, 20 * np.arange(len(values)), values) + 0.2 * rng.normal(size=len(at))
    )


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_losses_are_no_fault(name):
    assert first_fault(HEALTHY[name](np.random.default_rng(0), 20_000), losses_of([])) is None


@pytest.mark.parametrize("name", LOGS)
def test_the_runs_of_the_shipped_models_have_no_fault(name):
    assert first_fault(logged(name), losses_of([])) is None
    assert first_fault(steps_of(name, np.random.default_rng(0)), losses_of([])) is None


INJECTED = {  # factors of the losses from a step on, and the steps within which it is found
    "poisoned batch": (lambda i: 50.0 if i == 0 else 1.0, 1),
    "divergence": (lambda i: 1000.0 ** min((i + 1) / 20, 1.0), 31),
    "overflow": (lambda i: min(1.4 ** (i + 1), 1e30), 31),
    "plateau": (lambda i: 10.0, 31),
    "nan": (lambda i: math.nan, 1),
    "inf": (lambda i: math.inf, 1),
}


@pytest.mark.parametrize("fault", INJECTED)
@pytest.mark.parametrize("name", ["memorised", *LOGS])
def test_an_injected_fault_is_found(name, fault):
    factor, within = INJECTED[fault]
    rng = np.random.default_rng(1)
    usual = memorised(rng, 3_000) if name == "memorised" else steps_of(name, rng)
    for at in (200, 1_000, 2_500):
        record = losses_of(usual[:at])
        losses = [factor(i) * x for i, x in enumerate(usual[at : at + 100])]
        if name == "memorised" and fault == "poisoned batch":
            losses[0] = 50 * max(record.losses)  # a lower one is like healthy ones
        assert first_fault(losses, record)[0] < within


@pytest.mark.parametrize("checkpoint,batch", [(0, 70), (80, 80)])
def test_training_goes_back_to_where_high_losses_begin(tmp_path, capsys, checkpoint, batch):
    bad = {i: 0.2 + 2.5 * (i % 2) for i in range(70, 200)}  # around the mean, which stays
    with pytest.raises(UserError, match=f"2 faults in a row since step {checkpoint}: 24 losses"):
        train(tmp_path, bad, examples=240, save_every=2 * checkpoint or 240, tries=1)
    assert f"back to step {checkpoint}, without batch {batch}\n" in capsys.readouterr().out


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
        record.add({"loss": i / 3, "other": 1.0}, i / 3 + i % 7)
    record.skip([2])
    again = TrainingRecord.from_json(json.loads(json.dumps(record.to_json())), 8)
    assert again == record and len(again.losses) == WINDOW and again.peak > 1
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
    assert record.peak == losses_of([0.5, 2.1]).peak == 2.1 / 0.5
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
