"""The training loop on a model of one number: bad numbers, signals, and hanging."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.toy_training import TRAIN, Mean, contents, example, rows, script, train, waits
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.train import loop


@pytest.mark.parametrize(
    "value,said", [(np.nan, "loss nan"), (1e3, "loss 9.9"), (1e30, "loss inf")]
)
def test_a_bad_batch_is_left_out(tmp_path, capsys, value, said):
    train(tmp_path / "bad", {33: value})
    step, state, record, log = contents(tmp_path / "bad")
    assert step == 60 and record["skipped"] == [33]
    assert state["extra"]["seen"] == pytest.approx(
        sum(1 + i % 7 / 7 for i in range(122) if i not in (66, 67)), rel=1e-6
    )
    out = capsys.readouterr().out
    assert (
        said in out
        and "in step 34, with batch 33 (66, 67): back to step 20, without batch 33" in out
    )
    assert [line for line in log if "fault/step" in line] == [
        {"step": 21, "fault/step": 34, "fault/first_batch": 33, "fault/batches": 1}
    ]
    assert [line["step"] for line in log] == sorted(line["step"] for line in log)
    assert all(line["train/loss"] < 10 for line in log if "train/loss" in line)


def test_several_in_a_row_leave_out_more_each_time_and_those_after_a_checkpoint_count_anew(
    tmp_path,
):
    train(tmp_path, {33: np.nan, 35: np.nan, 50: np.nan, 51: np.nan, 52: np.nan}, tries=3)
    step, _, record, log = contents(tmp_path)
    assert step == 60 and record["skipped"] == [33, 34, 35, *range(46, 53)]
    faults = [
        (line["step"], line["fault/step"], line["fault/first_batch"], line["fault/batches"])
        for line in log
        if "fault/step" in line
    ]
    assert faults[:2] == [(21, 34, 33, 1), (21, 35, 34, 2)]
    assert faults[2:] == [(41, 48, 50, 1), (41, 48, 49, 2), (41, 47, 46, 4)]


def test_too_many_in_a_row_end_the_run_with_a_report(tmp_path):
    with pytest.raises(UserError) as error:
        train(tmp_path, dict.fromkeys(range(30, 5_000), np.nan))
    said = str(error.value)
    assert said.startswith(
        "toy: 4 faults in a row since step 20: loss nan in step 31, with batch 30 (60, 61); "
    )
    assert str(tmp_path / "checkpoints") in said and "try a lower learning rate" in said
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20


def test_before_the_first_checkpoint_training_begins_again(tmp_path, capsys):
    train(tmp_path, {5: np.nan})
    assert "back to step 0, without batch 5" in capsys.readouterr().out
    assert contents(tmp_path)[2]["skipped"] == [5]


def test_a_run_that_stops_anywhere_meets_the_same_faults(tmp_path):
    bad = {12: np.nan, 33: np.nan, 35: 1e3}
    train(tmp_path / "whole", bad)

    class Stop(Exception):
        pass

    for at in (11, 34, 36, 59):

        def load(i, rng, at=at):
            if i == 2 * at:
                raise Stop
            return example(i, bad)

        with pytest.raises(Stop):
            train(tmp_path / "stopped", load=load)
    train(tmp_path / "stopped", bad)
    (a, state, record, log), (b, state_, record_, log_) = (
        contents(tmp_path / "whole"),
        contents(tmp_path / "stopped"),
    )
    assert (a, record, log) == (b, record_, log_)
    jax.tree.map(np.testing.assert_array_equal, state, state_)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Silent(Mean):  # no metric shows it
        def update_extra(self, extra, aux, key, step, axis):
            return {"seen": extra["seen"] + jnp.where(step == 33, jnp.nan, 0.0)}, {}

        def weights_of(self, params, extra):
            return params | {"seen": extra["seen"]}

    with pytest.raises(UserError, match="weights that are not finite in step 40"):
        train(tmp_path, stage=Silent(), ema=0.0)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20


def test_an_evaluation_that_did_not_come_about_is_made_up_for(tmp_path):
    class Stop(Exception):
        pass

    def fails_at(wrong):
        def evaluate(step, weights):
            if step == wrong:
                raise Stop
            return {"mean": weights["mean"]}

        return evaluate

    train(tmp_path / "whole")
    for at in (30, 60):
        with pytest.raises(Stop):
            train(tmp_path / "stopped", evaluate=fails_at(at), save_every=20)
    with Checkpoints(tmp_path / "stopped" / "checkpoints") as checkpoints:
        settings = loop.Train(**TRAIN)
        assert checkpoints.latest_step() == 60 and loop.unevaluated(
            settings, checkpoints, tmp_path / "stopped"
        )
        train(tmp_path / "stopped")
        assert not loop.unevaluated(settings, checkpoints, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_saves_by_the_clock_change_nothing_else(tmp_path):
    for folder, minutes in (("whole", 0.0), ("often", 1e-9)):
        train(tmp_path / folder, save_minutes=minutes, keep=60, examples=60)
    steps = [Checkpoints(tmp_path / f / "checkpoints").steps() for f in ("whole", "often")]
    assert steps == [[20, 30], [*range(1, 31)]]
    (*_, state, record, log), (*_, state_, record_, log_) = (
        contents(tmp_path / folder) for folder in ("whole", "often")
    )
    assert (record, log) == (record_, log_)
    jax.tree.map(np.testing.assert_array_equal, state, state_)


@pytest.mark.parametrize(
    "number,status",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_after_the_step_and_the_next_run_goes_on(request, tmp_path, number, status):
    train(tmp_path / "whole")
    process = script(waits(at=33, seconds=2, folder=tmp_path / "stopped"))
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert (
        "saving after this step, then exiting" in errors
        and "the same command resumes from the last checkpoint" in errors
    )
    stopped = Checkpoints(tmp_path / "stopped" / "checkpoints", read_only=True).latest_step()
    assert 20 < stopped <= 34  # the loader reads ahead
    train(tmp_path / "stopped")
    (a, state, record, log), (b, state_, record_, log_) = (
        contents(tmp_path / "whole"),
        contents(tmp_path / "stopped"),
    )
    assert (a, record, log) == (b, record_, log_)
    jax.tree.map(np.testing.assert_array_equal, state, state_)


@pytest.mark.slow  # two starts of a process
def test_an_evaluation_ends_at_once(request, tmp_path):
    slow = "lambda step, weights: [print('there', flush=True), time.sleep(100)]"
    process = script(waits(at=999, seconds=0, folder=tmp_path, evaluate=slow))
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and "terminated; the same command" in errors
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 30
    train(tmp_path)
    assert [line["step"] for line in rows(tmp_path) if "held_out/mean" in line] == [30, 60]


def test_a_signal_in_a_destructor_is_not_lost(request):
    text = """
        class Late:
            def __del__(self):
                print("there", flush=True)
                time.sleep(1)
        def main():
            late = Late()
            del late
            time.sleep(100)
        signals.install_handlers()
        sys.exit(runner.status(main))
        """
    process = script(text)
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert (
        process.returncode == 143
        and "terminated; the same command" in errors
        and "ignored" not in errors
    )


@pytest.mark.slow  # 7 s
def test_a_step_that_does_not_end_is_not_waited_for(request, tmp_path):
    process = script("signals.GRACE = 2\n" + waits(at=33, seconds=1000, folder=tmp_path))
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    time.sleep(3)  # until the batches before are used up
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (
        process.returncode == 143
        and "terminated: the computation did not finish within 2 s" in errors
    )
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20


def test_a_run_that_hangs_ends_with_the_stacks_of_its_threads(request, tmp_path):
    changed = {"hang": 3.0, "hang_seconds": 3.0}
    process = script(waits(at=33, seconds=1000, folder=tmp_path, **changed))
    request.addfinalizer(process.kill)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        "toy: if a step takes more than about 3 s, the run ends with the stacks of its threads; "
        "the same command then resumes from the last checkpoint" in output
    )
    assert "Timeout (0:00:03)!" in errors
    # the thread that hangs, and others
    assert " in load\n" in errors and errors.count("Thread 0x") > 1
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="Windows has no Ctrl-Z")
def test_a_run_may_be_suspended_for_longer_than_a_step_may_take(request, tmp_path):
    process = script(waits(at=33, seconds=1, folder=tmp_path, hang=3.0, hang_seconds=3.0))
    request.addfinalizer(process.kill)
    while process.stdout.readline() != "there\n":
        pass
    process.send_signal(signal.SIGTSTP)
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert stopped.si_status == signal.SIGSTOP  # after the timer, not by the signal's default
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Timeout" not in errors
    assert contents(tmp_path)[0] == 60
