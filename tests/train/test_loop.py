"""The loop on a model of one number: what it does when numbers are bad, when it is told to end, and
when nothing moves.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, Log
from vqd_jax.runtime.sharding import parallelism
from vqd_jax.train import loop
from vqd_jax.train.guard import Guard
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile

OPTIM = dict(
    learning_rate=0.1,
    warmup=0,
    decay="constant",
    final=1.0,
    betas=(0.9, 0.9),
    weight_decay=0.0,
    clip=0.0,
    muon=0.0,
)
TRAIN = dict(
    examples=120,
    batch_size=2,
    accumulate=1,
    ema=0.9,
    log_every=10,
    evaluate_every=60,
    save_every=40,
    keep=2,
)
GUARD = dict(spike=10.0, tries=3, hang=0.0, hang_seconds=1.0)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Learns the mean of the examples; `extra` counts what it has seen."""

    watched = "loss"
    unchanged = None

    def init(self, key, batch):
        return {"mean": jnp.zeros(())}, {"seen": jnp.zeros(())}

    def loss(self, params, extra, frozen, batch, key, step, rows):
        noise = 0.01 * jax.vmap(jax.random.normal)(rows.keys(key))
        loss = jnp.square(params["mean"] - batch["x"] + noise).mean()
        return loss, ({"x": batch["x"]}, {"loss": loss})

    def update_extra(self, extra, seen, key, step, axis):
        return {"seen": extra["seen"] + seen["x"].sum()}, {}

    def weights_of(self, params, extra):
        return params


def train(
    folder,
    bad=None,
    *,
    evaluate=lambda step, weights: {"mean": weights["mean"]},
    load=None,
    **changed,
):
    """A run in `folder`; `bad` maps a batch to the value of its examples."""
    settings = TRAIN | {k: v for k, v in changed.items() if k in TRAIN}
    guard = GUARD | {k: v for k, v in changed.items() if k in GUARD}
    place = lambda i: next(
        (v for batch, v in (bad or {}).items() if 2 * batch <= i < 2 * batch + 2), 1.0 + i % 7 / 7
    )
    loader = Loader(
        range(10_000),
        batch_size=2,
        seed=0,
        shuffle=False,
        load=load or (lambda i, rng: {"x": np.float32(place(i))}),
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return loop.run(
            "toy",
            Mean(),
            train=loop.Train(**settings),
            optim=Optim(**OPTIM),
            guard=Guard(**guard),
            profile=Profile(steps=0),
            loader=loader,
            parallel=parallelism(devices=1),
            checkpoints=checkpoints,
            log=Log(folder),
            key=jax.random.key(0),
            frozen={},
            items={"config": {}},
            evaluate=evaluate,
        )


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def contents(folder):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    return (
        checkpoints.latest_step(),
        checkpoints.restore("state"),
        checkpoints.restore("record"),
        rows(folder),
    )


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
            return {
                "x": np.float32(
                    next(
                        (v for batch, v in bad.items() if 2 * batch <= i < 2 * batch + 2),
                        1.0 + i % 7 / 7,
                    )
                )
            }

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
    class Silent(Mean):  # no metric tells
        def update_extra(self, extra, seen, key, step, axis):
            return {"seen": extra["seen"] + jnp.where(step == 33, jnp.nan, 0.0)}, {}

        def weights_of(self, params, extra):
            return params | {"seen": extra["seen"]}

    settings = dict(
        train=loop.Train(**TRAIN | {"ema": 0.0}),
        optim=Optim(**OPTIM),
        guard=Guard(**GUARD),
        frozen={},
        profile=Profile(steps=0),
        parallel=parallelism(devices=1),
    )
    loader = Loader(range(100), batch_size=2, seed=0, load=lambda i, rng: {"x": np.float32(i)})
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(UserError, match="weights that are not finite in step 40"),
    ):
        loop.run(
            "toy",
            Silent(),
            loader=loader,
            checkpoints=checkpoints,
            log=Log(tmp_path),
            key=jax.random.key(0),
            items={},
            evaluate=lambda step, weights: {},
            **settings,
        )
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


def script(text):
    """A process that runs `text` with all that is in this file."""
    imports = (
        "import conftest",
        "from pathlib import Path",
        "from vqd_jax.cli import runner as command; from vqd_jax.runtime import signals as interrupt",
        "from test_loop import *",
    )
    code = "\n".join([*imports, textwrap.dedent(text)])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


SLOW = """
import time
def load(i, rng):
    if i == 2 * {at}:
        print("there", flush=True)
        time.sleep({seconds})
    return {{"x": np.float32(1.0 + i % 7 / 7)}}
interrupt.listen()
command.run(lambda argv: train(Path({folder!r}), load=load, evaluate={evaluate}, **{changed}), again="goes on from the last checkpoint")
"""
QUIET = "lambda step, weights: {'mean': weights['mean']}"


@pytest.mark.parametrize("number,status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_step_and_the_next_run_goes_on(request, tmp_path, number, status):
    train(tmp_path / "whole")
    process = script(
        SLOW.format(at=33, seconds=2, folder=str(tmp_path / "told"), evaluate=QUIET, changed={})
    )
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert (
        "saving after this step, then ending" in errors
        and "the same command goes on from the last checkpoint" in errors
    )
    stopped = Checkpoints(tmp_path / "told" / "checkpoints", read_only=True).latest_step()
    assert 20 < stopped <= 34  # the loader reads ahead
    train(tmp_path / "told")
    (a, state, record, log), (b, state_, record_, log_) = (
        contents(tmp_path / "whole"),
        contents(tmp_path / "told"),
    )
    assert (a, record, log) == (b, record_, log_)
    jax.tree.map(np.testing.assert_array_equal, state, state_)


def test_an_evaluation_ends_at_once(request, tmp_path):
    slow = "lambda step, weights: [print('there', flush=True), time.sleep(100)]"
    process = script(
        SLOW.format(at=999, seconds=0, folder=str(tmp_path), evaluate=slow, changed={})
    )
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "ended as asked" in errors
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 30
    train(tmp_path)
    assert [line["step"] for line in rows(tmp_path) if "held_out/mean" in line] == [30, 60]


def test_a_signal_in_a_destructor_is_not_lost(request):
    text = """
        import time
        class Late:
            def __del__(self):
                print("there", flush=True)
                time.sleep(1)
        def main(argv):
            late = Late()
            del late
            time.sleep(100)
        interrupt.listen()
        command.run(main)
        """
    process = script(text)
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0 and "ended as asked" in errors and "ignored" not in errors


def test_a_step_that_does_not_end_is_not_waited_for(request, tmp_path):
    text = "interrupt.GRACE = 2\n" + SLOW.format(
        at=33, seconds=1000, folder=str(tmp_path), evaluate=QUIET, changed={}
    )
    process = script(text)
    request.addfinalizer(process.kill)
    assert "there\n" in iter(process.stdout.readline, "")
    time.sleep(3)  # until the batches before are used up
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (
        process.returncode == 0 and "ended: what was being computed did not finish in 2 s" in errors
    )
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20


def test_a_run_that_hangs_ends_with_the_stacks_of_its_threads(request, tmp_path):
    changed = {"hang": 3.0, "hang_seconds": 8.0}
    process = script(
        SLOW.format(at=33, seconds=1000, folder=str(tmp_path), evaluate=QUIET, changed=changed)
    )
    request.addfinalizer(process.kill)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert (
        "error: toy: no step for" in errors
        and "the same command goes on from the last checkpoint" in errors
    )
    assert (
        " in load\n" in errors and "test_loop.py" in errors and errors.count("Thread 0x") > 1
    )  # the thread that hangs, and others
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 20
