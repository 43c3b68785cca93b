"""Which checkpoint of a workdir is loaded and exported, and that it is said."""

import shutil

import jax
import numpy as np
import pytest

from helpers.workdirs import items, made, make_workdir, same_arrays
from vqd_jax.cli import runner
from vqd_jax.cli.flags import checkpoints_of
from vqd_jax.cli.flags import loading as loading_flags
from vqd_jax.core.errors import UserError
from vqd_jax.inference import export, loading, pipeline
from vqd_jax.models.weights import exported
from vqd_jax.runtime.checkpoint import Best, Checkpoints
from vqd_jax.runtime.workdir import Workdir

RECORDS = {
    "vqvae": Best(step=7, measure="lpips", value=0.125),
    "diffusion": Best(step=9, measure="retrieval@1", value=0.5),
}


def scaled(stored, factor):
    return jax.tree.map(lambda x: x * np.float32(factor), stored)


def add_steps(workdir, mark):
    """Later checkpoints with other weights: 8 and 9 of the codec, 12 and 15 of the denoiser; the
    first ones are the best if `mark`.
    """
    for stage, steps in (("vqvae", (8, 9)), ("diffusion", (12, 15))):
        _, stored = items(workdir, stage)
        with Checkpoints(Workdir(workdir).checkpoints(stage)) as checkpoints:
            if mark:
                checkpoints.mark_best(RECORDS[stage])
            for step in steps:
                weights = {"weights": scaled(stored["weights"], step)}
                checkpoints.save(step, stored | weights, wait=True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = make_workdir(tmp_path_factory.mktemp("steps") / "run", {"data.cache": ""})
    add_steps(folder, mark=True)
    return folder


def weights(workdir, stage, step):
    return loading.stored_items(workdir, stage, "weights", step=step)[0]


@pytest.mark.parametrize(
    "which,step,kind", [(None, 9, "best"), ("last", 15, "last"), (12, 12, "step")]
)
def test_the_best_is_loaded_by_default_and_others_by_name(workdir, which, step, kind):
    model = pipeline.load(workdir, checkpoint=which)
    same_arrays(jax.device_get(model.weights), weights(workdir, "diffusion", step))
    same_arrays(jax.device_get(model.codec_weights), weights(workdir, "vqvae", 7))
    used = model.checkpoints[1]
    assert (used.stage, used.step, used.kind) == ("diffusion", step, kind)
    record = {"measure": "retrieval@1", "value": 0.5} if kind == "best" else {}
    assert used.to_json() == {"step": step, "kind": kind} | record
    own = {
        "best": "9, the best by retrieval@1 (0.5)",
        "last": "15, the last",
        "step": "12",
    }[kind]
    said = f"model: vqvae step 7, the best by lpips (0.125); diffusion step {own}"
    assert checkpoints_of(model) == said


def test_without_a_best_one_the_last_is_loaded(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run").rglob("best.json"):
        file.unlink()
    model = pipeline.load(tmp_path / "run")
    assert [str(used) for used in model.checkpoints] == [
        "vqvae step 9, the last",
        "diffusion step 15, the last",
    ]
    same_arrays(jax.device_get(model.weights), weights(workdir, "diffusion", 15))
    with pytest.raises(UserError, match="there is no best checkpoint in .*take the last"):
        pipeline.load(tmp_path / "run", checkpoint="best")


def test_a_step_that_there_is_not_is_one_sentence(workdir):
    with pytest.raises(
        UserError, match="no checkpoint 13 in .*: choose best, last or one of the steps 9, 12, 15$"
    ):
        pipeline.load(workdir, checkpoint=13)


def test_the_chosen_one_is_exported_and_stays_the_best(workdir, tmp_path):
    said = export.export(workdir, "workdir", tmp_path / "small")
    assert said.endswith(
        "(vqvae step 7, the best by lpips (0.125); diffusion step 9, the best by retrieval@1 (0.5))"
    )
    small = [loading.chosen_checkpoint(tmp_path / "small", stage) for stage in RECORDS]
    assert [(used.step, used.best.measure) for used in small] == [(7, "lpips"), (9, "retrieval@1")]
    file = tmp_path / "model.safetensors"
    assert "diffusion step 12)" in export.export(workdir, "safetensors", file, "12")
    stages, _ = exported.read(file)
    assert {stage: stored["step"] for stage, stored in stages.items()} == {
        "vqvae": 7,
        "diffusion": 12,
    }
    same_arrays(stages["diffusion"]["weights"], weights(workdir, "diffusion", 12))


def test_the_flag_is_read_by_every_command_that_loads_a_model():
    for command in ("sample", "explain", "demo", "evaluate"):
        _, options, _ = runner.parse(command, ["--checkpoint=last"])
        assert loading_flags(options) == {"checkpoint": "last"}


@pytest.mark.slow  # 11 s
def test_sampling_says_which_one_it_uses(workdir, tmp_path):
    sample = ["sample", f"--workdir={workdir}", "--prompt=a red apple", "--num=1", "--calls=1"]
    said = made(*sample, f"--out={tmp_path / 'a.png'}", "--checkpoint=last")
    assert said.startswith(
        "model: vqvae step 7, the best by lpips (0.125); diffusion step 15, the last\n"
    )


def test_a_codec_alone_may_be_chosen(tmp_path):
    workdir = make_workdir(tmp_path / "run", {}, stages=())
    _, stored = items(workdir, "vqvae")
    with Checkpoints(Workdir(workdir).checkpoints("vqvae")) as checkpoints:
        checkpoints.mark_best(RECORDS["vqvae"])
        checkpoints.save(8, stored, wait=True)
    assert str(pipeline.load(workdir, checkpoint="last").checkpoints[0]) == "vqvae step 8, the last"
