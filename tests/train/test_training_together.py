"""Four processes train both stages on one mesh and save together; two of them, or one, go on:
always the losses of one process.
"""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from helpers import ROOT
from helpers.ports import free_port
from vqd_jax.inference import pipeline
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, read_metrics
from vqd_jax.runtime.workdir import Workdir

pytestmark = pytest.mark.slow
STAGES = ("vqvae", "diffusion")
SETTINGS = (
    """
    emoji.max_items=24 vqvae.channels=8 vqvae.multipliers=(1,) vqvae.residual_blocks=0 vqvae.patch_size=8 vqvae.latent_width=8
    codebook.codes=32 codebook.width=8 codebook.restart_every=2 denoiser.layers=1 denoiser.width=16 denoiser.heads=2
    learned_text.width=16 learned_text.heads=2 learned_text.layers=0 learned_text.vocabulary=280 process.T=10 sampling.calls=1
    sampling.guidance=1.0 held_out.examples=8 held_out.draws=1 held_out.lpips=False preview.pictures=1 preview.prompts=()
    """.split()
    + [
        f"{stage}_train.{key}"
        for stage in STAGES
        for key in (
            "batch_size=8",
            "examples=32",
            "log_every=8",
            "save_every=16",
            "evaluate_every=32",
        )
    ]
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains in a workdir with so many processes of one device each, and returns what each of them
    said.
    """
    home = tmp_path_factory.mktemp("home")
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(home / "xla"),
    }
    cache = os.environ.get("VQD_TEST_CACHE") or home / "cache"

    def run(workdir, processes=1, changed=()):
        command = [
            sys.executable,
            "-m",
            "vqd_jax.main",
            "--config=configs/emoji.py",
            f"--workdir={workdir}",
            *(f"--config.{key}" for key in [f"data.cache={cache}", *SETTINGS, *changed]),
        ]
        if processes > 1:
            command += [
                f"--coordinator=127.0.0.1:{free_port()}",
                f"--processes={processes}",
                "--config.parallel.strategy=mesh",
                "--config.parallel.fsdp=2",
            ]
        each = [command + [f"--process={i}"] * (processes > 1) for i in range(processes)]
        tasks = [
            subprocess.Popen(
                words,
                cwd=ROOT,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for words in each
        ]
        said = [task.communicate(timeout=400)[0] for task in tasks]
        assert [task.returncode for task in tasks] == [0] * processes, "\n".join(said)
        return said

    return run


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    train(workdir := tmp_path_factory.mktemp("alone") / "run")
    return workdir


@pytest.fixture(scope="module")
def together(train, alone, tmp_path_factory):
    said = train(workdir := tmp_path_factory.mktemp("together") / "run", processes=4)
    assert all("on a mesh of 2 data x 2 fsdp x 1 tensor cpu devices" in text for text in said)
    return workdir


def same_numbers(workdir, alone):
    for stage in STAGES:
        numbers = [
            [
                {k: v for k, v in row.items() if "/" in k and k not in TIMINGS}
                for row in read_metrics(w / stage / "metrics.jsonl")
            ]
            for w in (workdir, alone)
        ]
        numbers = [[row for row in rows if row] for rows in numbers]
        assert len(numbers[0]) == len(numbers[1]) == 5  # four steps and an evaluation
        for got, want in zip(*numbers):
            assert got.keys() == want.keys()
            np.testing.assert_allclose(
                [*got.values()],
                [*want.values()],
                rtol=1e-4,
                atol=1e-5,
                err_msg=f"{stage} {want.keys()}",
            )


def test_four_processes_train_as_one_does(together, alone):
    same_numbers(together, alone)


@pytest.mark.parametrize("stage", STAGES)
def test_every_process_wrote_its_parts(together, stage):
    for step in ("2", "4"):
        state = Workdir(together).checkpoints(stage) / step / "state"
        shares = {
            d.name: sum(f.stat().st_size for f in (d / "d").iterdir())
            for d in state.glob("ocdbt.process_*")
        }
        assert shares.keys() == {f"ocdbt.process_{i}" for i in range(4)}
        assert all(0.1 < size / sum(shares.values()) < 0.5 for size in shares.values()), (
            step,
            shares,
        )


def test_one_process_reads_what_four_wrote(together, alone):
    four, one = map(pipeline.load, (together, alone))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        four.weights,
        one.weights,
    )
    images = four(["a google style emoji of a dog"] * 2, seed=3, output="np")
    assert images.shape == (2, 32, 32, 3) and images.std() > 0


@pytest.mark.parametrize("processes", [2, 1])
def test_fewer_processes_go_on(train, together, alone, tmp_path, processes):
    shutil.copytree(together, again := tmp_path / "run")
    for stage in STAGES:
        shutil.rmtree(Workdir(again).checkpoints(stage) / "4")
    said = train(again, processes)
    assert all(f"{stage}: 2 of 4 steps" in text for text in said for stage in STAGES)
    same_numbers(again, alone)


def test_all_save_when_one_asks_by_its_clock(train, alone, tmp_path):
    changed = [
        f"{stage}_train.{key}"
        for stage in STAGES
        for key in ("save_every=32", "save_minutes=1e-6", "keep=4")
    ]
    train(workdir := tmp_path / "run", processes=2, changed=changed)
    for stage in STAGES:
        steps = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True).steps()
        assert steps == [1, 2, 3, 4]
    same_numbers(workdir, alone)
