"""Training keeps the best checkpoint by a measure of its evaluations, whenever it is interrupted."""

import json
import signal

import jax
import numpy as np
import pytest

from helpers.toy_training import example, script, train
from vqd_jax.core.errors import UserError
from vqd_jax.eval.validation import BETTER, is_better
from vqd_jax.runtime.checkpoint import Best, Checkpoints
from vqd_jax.runtime.log import TIMINGS, Log

# Evaluations every 10 of 60 steps, saves every 20; the best ones in turn are 10, 20, 30, 50.
LPIPS = {10: 0.5, 20: 0.4, 30: 0.3, 40: 0.35, 50: 0.2, 60: 0.2}
SETTINGS = dict(evaluate_every=20, best="lpips")


class Stop(Exception):
    pass


def values(step, weights):
    return {"lpips": np.float32(LPIPS[step]), "psnr": -LPIPS[step], "mean": weights["mean"]}


def run(folder, **changed):
    train(folder, **dict(evaluate=values) | SETTINGS | changed)


def contents(folder):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
    trees = {step: checkpoints.restore("state", step=step) for step in checkpoints.steps()}
    return checkpoints.best(), log, trees


def assert_same(one, two):
    (best, log, trees), (best_, log_, trees_) = contents(one), contents(two)
    assert (best, log) == (best_, log_)
    jax.tree.map(np.testing.assert_array_equal, trees, trees_)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_the_first_of_the_best_evaluations_is_kept_whole(whole):
    checkpoints = Checkpoints(whole / "checkpoints", read_only=True)
    best = checkpoints.best()
    assert best == Best(step=50, measure="lpips", value=float(np.float32(0.2)))
    assert checkpoints.steps() == [50, 60]
    state = checkpoints.restore("state", step=50)
    assert state["step"] == 50 and state["extra"]["seen"] == pytest.approx(
        sum(example(i, {})["x"] for i in range(100)), rel=1e-6
    )
    assert {"weights", "record", "config"} < {p.name for p in (whole / "checkpoints/50").iterdir()}


def test_rotation_never_removes_it(tmp_path):
    run(tmp_path, best="psnr", evaluate=lambda step, weights: {"psnr": 10.0 - step})
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps() == [10, 40, 60]
    assert checkpoints.best() == Best(step=10, measure="psnr", value=0.0)


def test_without_a_measure_nothing_changes(tmp_path, whole):
    run(tmp_path, best="")
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best() is None and checkpoints.steps() == [40, 60]
    last = lambda folder: contents(folder)[2][60]
    jax.tree.map(np.testing.assert_array_equal, last(tmp_path), last(whole))


def stop(method, when):
    """`method`, of which the call for which `when(calls, *args)` holds is never made."""
    calls = []

    def stopped(self, *args, **options):
        calls.append(args)
        if when(len(calls), *args):
            raise Stop
        return method(self, *args, **options)

    return stopped


MOMENTS = {
    "before the record of the best is written": (
        Checkpoints,
        "mark_best",
        lambda calls, best: best.step == 30,
    ),
    "before the evaluation is in the log": (
        Log,
        "write",
        lambda calls, step, values, prefix="", *_: step == 30 and prefix == "held_out/",
    ),
    "before a save for the best": (
        Checkpoints,
        "save",
        lambda calls, step, *_: step == 50,
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_moment_the_same_one_is_the_best(tmp_path, whole, monkeypatch, moment):
    owner, name, when = MOMENTS[moment]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(owner, name, stop(getattr(owner, name), when))
        run(tmp_path)
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_interrupted_between_evaluations_the_record_is_read_again(tmp_path, whole):
    """At steps 36 (a worse evaluation follows) and 56 (an equal one), and in an evaluation."""

    def load(i, rng, at):
        if i == 2 * at:
            raise Stop
        return example(i, {})

    for at in (36, 56):
        with pytest.raises(Stop):
            run(tmp_path, load=lambda i, rng, at=at: load(i, rng, at))

    def evaluate(step, weights):
        raise Stop

    with pytest.raises(Stop):
        run(tmp_path, evaluate=evaluate)
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_another_measure_begins_anew(tmp_path):
    """With the higher of PSNR, the old best, chosen by LPIPS, does not count."""
    with pytest.raises(Stop):
        run(tmp_path, evaluate=lambda step, w: values(step, w) if step < 40 else stop_now())
    run(tmp_path, best="psnr", evaluate=lambda step, weights: {"psnr": 100.0 - step})
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best() == Best(step=40, measure="psnr", value=60.0)


def stop_now():
    raise Stop


def test_an_evaluation_without_the_measure_is_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match="toy: the best checkpoint is chosen by ssim, .* only lpips"
    ):
        run(tmp_path, best="ssim")


def test_which_values_are_better():
    lower = {"lpips"}
    for measure in BETTER:
        sign = -1 if measure in lower else 1
        assert is_better(measure, 0.5, None) and not is_better(measure, 0.5, 0.5)
        assert is_better(measure, 0.5 + 0.1 * sign, 0.5)
        assert not is_better(measure, 0.5 - 0.1 * sign, 0.5)
        assert not is_better(measure, float("nan"), 0.5) and not is_better(
            measure, float("nan"), None
        )


@pytest.mark.slow  # 10 s each; the exceptions above are the quick ones
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_when_the_record_gets_its_name(tmp_path, whole, moment):
    """SIGKILL just before, or just after, best.json of step 30 is there."""
    process = script(
        f"""
        import os, signal
        replace = Path.replace
        def killed(self, target):
            struck = str(target).endswith("30/best.json")
            if struck and {moment!r} == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(self, target)
            if struck:
                os.kill(os.getpid(), signal.SIGKILL)
        Path.replace = killed
        lpips = {LPIPS!r}
        evaluate = lambda step, w: {{"lpips": np.float32(lpips[step]), "psnr": -lpips[step], "mean": w["mean"]}}
        train(Path({str(tmp_path)!r}), evaluate=evaluate, **{SETTINGS!r})
        """
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    best = Checkpoints(tmp_path / "checkpoints", read_only=True).best()
    assert best.step == (20 if moment == "before" else 30)
    run(tmp_path)
    assert_same(tmp_path, whole)
