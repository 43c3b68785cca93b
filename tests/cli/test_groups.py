"""A small training with two codes a position: it resumes bit for bit, and every command works on
its workdir.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.commands import run, run_in_process, same_training, training

pytestmark = pytest.mark.slow  # 2 minutes
STAGES = ("vqvae", "diffusion")
PROMPT = "--prompt=a twitter style emoji of a crab"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("groups") / "emoji"
    run(*training(folder, cache, "--config.codebook.groups=2"))
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_three_steps_and_a_resume_are_six(workdir, cache, tmp_path, stage):
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / stage / "checkpoints" / "6")
    if stage == "vqvae":
        shutil.rmtree(again / "diffusion")
    done = run(*training(again, cache, "--config.codebook.groups=2"))
    assert f"{stage}: 3 of 6 steps" in done.stdout
    same_training(workdir, again, {stage, "diffusion"})


def test_other_groups_are_another_model(workdir, cache):
    done = run(*training(workdir, cache), ok=False)
    assert done.returncode == 2
    assert "codebook.groups is 2 there and 1 here" in done.stderr


def test_every_command_ends_well(workdir, cache, tmp_path):
    counts = np.load(max((workdir / "vqvae").glob("codes-*.npy")))
    assert counts.shape == (2 * 32,) and counts[:32].sum() == counts[32:].sum() > 0
    planned = run_in_process(
        "plan", f"--workdir={workdir}", f"--cache={cache}", "--calls=5", "--images=8", "--points=3"
    )
    assert planned.stdout.count("tokens at the 5 calls") == 2
    for order in ("random", "halton"):
        run_in_process(
            "sample",
            f"--workdir={workdir}",
            PROMPT,
            "--sampler=counts",
            "--calls=5",
            f"--option=order={order}",
            "--num=1",
            f"--trace={tmp_path / 'trace.png'}",
            f"--out={tmp_path / 'drawn.png'}",
        )
    stored = json.loads(Image.open(tmp_path / "drawn.png").text["vqd_jax"])
    assert sum(stored["counts"]) == 128
    run_in_process("explain", f"--workdir={workdir}", PROMPT, f"--out={tmp_path / 'why.png'}")
    run_in_process("export", f"--workdir={workdir}", f"--out={tmp_path / 'm.safetensors'}")
    said = run_in_process("convert", tmp_path / "m.safetensors", f"--workdir={tmp_path / 'back'}")
    assert "64 codes in 2 groups, 32 tokens" in said.stdout
    for folder in (workdir, tmp_path / "back"):
        out = tmp_path / f"{folder.name}.png"
        run_in_process("sample", f"--workdir={folder}", PROMPT, "--num=2", f"--out={out}")
    pictures = [Image.open(tmp_path / f"{name}.png") for name in (workdir.name, "back")]
    np.testing.assert_array_equal(*map(np.asarray, pictures))
    run_in_process("report", f"--workdir={workdir}")
    assert "64 codes" in (workdir / "report.html").read_text()


def test_an_adapter_trains_on_it(workdir, cache, tmp_path):
    tuned = tmp_path / "tuned"
    run(
        *training(
            tuned,
            cache,
            f"--config.init_from={workdir}",
            "--config.stages=('diffusion',)",
            "--config.adapter.rank=2",
        )
    )
    run_in_process(
        "sample",
        f"--workdir={workdir}",
        f"--adapter={tuned / 'adapter'}",
        PROMPT,
        "--num=1",
        f"--out={tmp_path / 'tuned.png'}",
    )
