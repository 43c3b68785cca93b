"""Plans for eight devices that are not at hand: what is printed and written, and bad input."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from helpers import ROOT
from vqd_jax.cli import runner
from vqd_jax.core.errors import UserError
from vqd_jax.train.cost.plan import chips, plan, table

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


def check_data_parallel(name, found, devices, names):
    """The parameters are replicated; gradients and statistics are exchanged by all-reduce."""
    axis = {"batch": devices}
    assert found["axes"] == axis and found["arguments"]["parameters"] == 4 * found["parameters"]
    sent = found["exchanges"]["all-reduce over batch"]["bytes"]
    statistics = {"vqvae": 64 + 64 * 8 + 64, "diffusion": 2 * 10, "autoregressive": 0}[name]
    share = 2 * (devices - 1) / devices
    assert sent == pytest.approx(share * 4 * (found["parameters"] + statistics), rel=1e-3)
    assert [chip["chip"] for chip in found["chips"]] == names
    for chip in found["chips"]:
        assert chip["fits"] and chip["seconds"] == pytest.approx(
            max(chip["compute"], chip["memory"]) + chip["communication"]
        )


USUAL = ["H100 SXM", "TPU v5e", "TPU v5p", "TPU v6e"]


@pytest.mark.slow  # 11 s
def test_a_plan_of_data_parallel_training(config):
    """On the four devices of this process."""
    found = plan(config, "diffusion", chips(""))
    check_data_parallel("diffusion", found, 4, USUAL)
    printed = table(found)
    assert printed.startswith(f"diffusion: {found['parameters']:,} parameters, batches of 16 on 4")
    assert printed.count("  fits") == 4


@pytest.mark.slow  # 20 s: three stages are compiled for eight devices
def test_a_plan_of_all_stages_for_eight_devices(tmp_path):
    out = tmp_path / "plan.json"
    done = run(
        "--devices=8", f"--json={out}", "--config.stages=('vqvae', 'diffusion', 'autoregressive')"
    )
    plans = {found["stage"]: found for found in json.loads(out.read_text())}
    assert list(plans) == ["vqvae", "diffusion", "autoregressive"]
    for name, found in plans.items():
        check_data_parallel(name, found, 8, USUAL)
        assert f"{name}: {found['parameters']:,} parameters" in done.stdout
    assert done.stdout.count("  fits") == 3 * 4 and "8 devices" in done.stdout


@pytest.mark.slow  # 15 s
def test_a_plan_for_a_mesh_of_eight_devices_of_one_kind(tmp_path):
    """The command as a process."""
    out = tmp_path / "plan.json"
    done = run(
        "--devices=8",
        f"--json={out}",
        "--config.stages=('diffusion',)",
        "--config.parallel.strategy=mesh",
        "--config.parallel.fsdp=4",
        "--chip=h200",
    )
    (found,) = json.loads(out.read_text())
    assert "8 devices (data 2 x fsdp 4 x tensor 1)" in done.stdout
    assert found["axes"] == {"data": 2, "fsdp": 4, "tensor": 1} and [
        chip["chip"] for chip in found["chips"]
    ] == ["H200 SXM"]
    assert (
        found["arguments"]["parameters"] < 0.6 * 4 * found["parameters"]
        and found["exchanges"]["all-gather over fsdp"]["bytes"] > 0
    )
    assert math.isclose(sum(found["arguments"].values()), found["bytes"]["arguments"], abs_tol=16)


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
        plan(config, "vqvae" if changes else "gan", chips("h100"))


def test_chips_are_found_by_words_of_their_names():
    assert [chip.name for chip in chips("v5p tpu")] == ["TPU v5p"]
    with pytest.raises(UserError, match="no chip is called 'abacus'; there are H100 SXM, "):
        chips("abacus")
