"""Plans for devices that are not at hand: what is printed and written, and bad input.

The quick tests compile for CPU devices, whose compiler is always there; `tests/slow/test_aot.py` compiles
for the chips.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from helpers import ROOT
from vqd_jax.cli import runner
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.hardware import CHIPS
from vqd_jax.train.cost.plan import plan_sampling, plan_training, table
from vqd_jax.train.cost.targets import GPUS, TPUS, target

CONFIG = [f"--config={ROOT / 'configs' / 'emoji.py'}"]
SMALL = """
    data.image_size=16 vqvae.channels=8 vqvae.latent_width=8 codebook.codes=64 codebook.width=8 vqvae_loss.lpips=0.0
    vqvae_optim.muon=0.0 diffusion_optim.muon=0.0 vqvae_train.batch_size=8 diffusion_train.batch_size=16
    denoiser.layers=1 denoiser.width=32 denoiser.heads=2 process.T=10 learned_text.width=32 learned_text.heads=2
    learned_text.vocabulary=300
    """.split()


def run(*arguments):
    env = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    command = [
        sys.executable,
        "-m",
        "vqd_jax",
        "plan_memory",
        *CONFIG,
        *(f"--config.{key}" for key in SMALL),
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def config(monkeypatch):
    arguments = [*CONFIG, *(f"--config.{key}" for key in SMALL)]
    monkeypatch.setattr(sys, "argv", ["vqd plan_memory", *arguments])
    return runner.parse("plan_memory", arguments)[1].config


def test_a_plan_of_data_parallel_training(config):
    """The parameters are replicated; gradients and statistics are summed over the four devices of
    this process, and the state is donated.
    """
    found = plan_training(config, "diffusion", target("cpu:4"))
    parameters, memory = found["parameters"], found["memory"]
    assert found["axes"] == {"batch": 4} and found["images"] == 16
    assert found["arguments"]["parameters"] == 4 * parameters
    assert found["arguments"]["optimizer"] >= 8 * parameters
    assert 0 <= memory["arguments"] - sum(found["arguments"].values()) <= 16  # the key
    assert memory["in_place"] >= 16 * parameters
    assert list(found["collectives"]) == ["all-reduce"]
    reduced = found["collectives"]["all-reduce"][1]
    assert 0 <= reduced - 4 * (parameters + 2 * 10) <= 4 * 8  # and losses by time, and metrics
    printed = table(found)
    assert printed.startswith("diffusion, a training step of 16 images on 4 x CPU device (batch 4)")
    assert f"parameters   {parameters:,}; micro-batches 1, attention chunked" in printed


@pytest.mark.slow  # 8 s
def test_a_plan_on_a_mesh_shards_the_state(config):
    config.parallel.strategy, config.parallel.fsdp = "mesh", 4
    found = plan_training(config, "diffusion", target("cpu:4"))
    assert found["axes"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert found["arguments"]["parameters"] < 0.6 * 4 * found["parameters"]
    assert found["collectives"]["all-gather"][0] > 0
    assert "(fsdp 4)" in table(found)


@pytest.mark.slow  # 4 s
def test_a_plan_of_sampling_has_decoding_with_it(config):
    config.sampling.calls = 5
    sample, decode = plan_sampling(config, "diffusion", target("cpu:2"), 3)
    assert sample["images"] == decode["images"] == 6 and sample["options"]["calls"] == 5
    assert sample["arguments"]["parameters"] == 4 * sample["parameters"]
    assert table(sample).startswith("diffusion, sampling with ancestral of 6 images on 2 x CPU")
    assert table(decode).startswith("vqvae, decoding of 6 images")


@pytest.mark.slow  # 8 s
def test_an_autoregressive_model_is_planned_with_its_own_sampler(config):
    sample, _ = plan_sampling(config, "autoregressive", target("cpu:2"), 2)
    assert sample["what"] == "autoregressive, sampling with autoregressive"
    assert sample["options"]["calls"] == 16 and sample["images"] == 4


@pytest.mark.slow  # 3 s
def test_a_codec_alone_samples_nothing():
    command = [sys.executable, "-m", "vqd_jax", "plan_memory", *CONFIG, "--chip=cpu:1", "--sample"]
    command += ["--config.stages=('vqvae',)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the stage vqvae alone samples nothing: leave out --sample\n"


@pytest.mark.slow  # 30 s: three stages are compiled for eight devices
def test_the_command_for_all_stages(tmp_path):
    out = tmp_path / "plan.json"
    stages = ("vqvae", "diffusion", "autoregressive")
    done = run("--chip=cpu:8", f"--json={out}", f"--config.stages={stages}")
    plans = json.loads(out.read_text())
    assert [found["what"] for found in plans] == [f"{name}, a training step" for name in stages]
    for found in plans:
        assert found["devices"] == 8 and table(found) in done.stdout


@pytest.mark.parametrize(
    "changes,sentence",
    [
        (
            {"parallel.devices": 3},
            "the batch size 8 must be a multiple of the 3 devices that share it",
        ),
        (
            {"parallel.strategy": "mesh", "parallel.fsdp": 3},
            "parallel.fsdp x parallel.tensor must divide the 4 devices, got 3 x 1",
        ),
        ({}, "stages must be one of vqvae, diffusion, autoregressive, got 'gan'"),
    ],
)
def test_a_training_that_cannot_be_is_a_sentence(config, changes, sentence):
    """On the four devices of this process."""
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
        plan_training(config, "vqvae" if changes else "gan", target("cpu:4"))


@pytest.mark.parametrize(
    "name,package",
    [("v5e:2x2", "jax[tpu]"), ("h100", "jax[cuda12]"), ("A100:1x1x8", "jax[cuda12]")],
)
def test_a_compiler_that_is_missing_is_named(name, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(UserError, match=re.escape(f'pip install "{package}"')):
        target(name)


@pytest.mark.parametrize("name", ["abacus:2x2", "v5e", "v5e:four", "h100:8", "cpu", "cpu:0", ""])
def test_a_target_that_does_not_exist_is_a_sentence(name):
    with pytest.raises(UserError, match="--chip must be like cpu:8|needs more"):
        target(name)


def test_every_target_is_in_the_table_of_chips():
    assert {*TPUS.values(), *(gpu.name for gpu in GPUS.values())} <= {*CHIPS}
