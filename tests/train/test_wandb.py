"""Weights & Biases in training: signals end it as they do without, and each stage has its run."""

import signal

import pytest

from helpers import killing
from helpers.killing import STAGES, link_emoji
from helpers.toy_training import contents, rows, script, train
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.log import TIMINGS, read_metrics
from vqd_jax.train.experiment import Experiment

wandb = pytest.importorskip("wandb")
from helpers.wandb_records import history, records, runs

TRAINING = """
from vqd_jax.runtime.trackers import WandB
from vqd_jax.runtime.workdir import StageFolder
def main():
    log = Log(folder)
    log.trackers.append(WandB(StageFolder(folder), "toy", "run", {{}}))
    train(folder, load=load, log=lambda folder: log)
    log.close()
def load(i, rng):
    if i == 2 * {at}:
        print("there", flush=True)
        time.sleep(2)
    return example(i, {{}})
folder = Path({folder!r})
signals.install_handlers()
sys.exit(runner.status(main, again="resumes from the last checkpoint"))
"""


@pytest.mark.slow  # 10 s each; signals without W&B are in test_loop.py
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_training_continues_the_run(
    request, monkeypatch, tmp_path, number
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "stopped"
    stopped = script(TRAINING.format(folder=str(folder), at=33))
    request.addfinalizer(stopped.kill)
    assert "there\n" in iter(stopped.stdout.readline, "")
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=30)
    assert stopped.returncode == 128 + number and "Traceback" not in errors, errors
    assert "saving after this step, then exiting" in errors
    resumed = script(TRAINING.format(folder=str(folder), at=999))
    request.addfinalizer(resumed.kill)
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors

    train(tmp_path / "undisturbed")
    assert contents(folder)[0] == 60 and rows(folder) == rows(tmp_path / "undisturbed")
    both = runs(folder)
    exits = [r.exit.exit_code for run in both for r in records(run) if r.HasField("exit")]
    assert exits == [1, 0]
    assert len({r.run.run_id for run in both for r in records(run) if r.HasField("run")}) == 1
    lines = [line for run in both for line in history(run)]
    assert [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines] == rows(folder)


def config(**changed):
    """Two steps of each stage, evaluated at the end."""
    out = killing.config(steps=2, wandb__project="emoji", **changed)
    for stage in STAGES:
        settings = out[f"{stage}_train"]
        settings.evaluate_every = settings.examples
    return out


@pytest.mark.slow  # 20 s: a training of both stages
def test_each_stage_has_a_run_in_the_group_of_the_workdir(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    workdir = link_emoji(tmp_path / "run")
    experiment = Experiment(config(), workdir)
    experiment.run()
    wandb.teardown()
    ids = set()
    for stage, sheet in zip(STAGES, ("reconstructions", "samples")):
        (run,) = runs(workdir / stage)
        (first, *_) = [r.run for r in records(run) if r.HasField("run")]
        assert (first.run_group, first.job_type) == (str(workdir)[-128:], stage)
        assert [r.exit.exit_code for r in records(run) if r.HasField("exit")] == [0]
        lines = [*history(run)]
        assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
        assert [line["step"] for line in lines if f"held_out/{sheet}" in line] == [2]
        assert len(lines) == len(read_metrics(workdir / stage))
        ids.add(first.run_id)
    assert len(ids) == 2


def test_without_a_login_nothing_is_written(monkeypatch, tmp_path):
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    with pytest.raises(UserError, match="wandb.project needs a login"):
        Experiment(config(), tmp_path / "run")
    wandb.teardown()
    assert not (tmp_path / "run").exists()
