"""The command, for eight devices that are not there: what it prints and writes, and its sentences."""

import json
import math
import os
import subprocess
import sys

import pytest

from helpers import ROOT

SMALL = """
    data.image_size=16 vqvae.channels=8 vqvae.latent_width=8 codebook.codes=64 codebook.width=8 vqvae_loss.lpips=0.0
    vqvae_optim.muon=0.0 diffusion_optim.muon=0.0 vqvae_train.batch_size=8 diffusion_train.batch_size=16
    denoiser.layers=1 denoiser.width=32 denoiser.heads=2 process.T=10 learned_text.width=32 learned_text.heads=2
    learned_text.vocabulary=300
    """.split()


def run(*arguments, config="configs/emoji.py", ok=True):
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
        f"--config={config}",
        *(f"--config.{key}" for key in SMALL),
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def test_a_plan_for_eight_devices_with_copies(tmp_path):
    out = tmp_path / "plan.json"
    done = run(
        "--devices=8", f"--json={out}", "--config.stages=('vqvae', 'diffusion', 'autoregressive')"
    )
    plans = {plan["stage"]: plan for plan in json.loads(out.read_text())}
    assert list(plans) == ["vqvae", "diffusion", "autoregressive"]
    for name, plan in plans.items():
        assert (
            plan["axes"] == {"batch": 8}
            and plan["arguments"]["parameters"] == 4 * plan["parameters"]
        )
        sent = plan["exchanges"]["all-reduce over batch"]["bytes"]
        learned = {"vqvae": 64 + 64 * 8 + 64, "diffusion": 2 * 10, "autoregressive": 0}[name]
        assert sent == pytest.approx(2 * 7 / 8 * 4 * (plan["parameters"] + learned), rel=1e-3)
        assert [chip["chip"] for chip in plan["chips"]] == [
            "H100 SXM",
            "TPU v5e",
            "TPU v5p",
            "TPU v6e",
        ]
        for chip in plan["chips"]:
            assert chip["fits"] and chip["seconds"] == pytest.approx(
                max(chip["compute"], chip["memory"]) + chip["communication"]
            )
        assert f"{name}: {plan['parameters']:,} parameters" in done.stdout
    assert done.stdout.count("  fits") == 3 * 4 and "8 devices" in done.stdout


def test_a_plan_for_a_mesh_of_one_chip_kind(tmp_path):
    out = tmp_path / "plan.json"
    run(
        "--devices=8",
        f"--json={out}",
        "--config.stages=('diffusion',)",
        "--config.parallel.strategy=mesh",
        "--config.parallel.fsdp=4",
        "--chip=h200",
    )
    (plan,) = json.loads(out.read_text())
    assert plan["axes"] == {"data": 2, "fsdp": 4, "tensor": 1} and [
        chip["chip"] for chip in plan["chips"]
    ] == ["H200 SXM"]
    assert (
        plan["arguments"]["parameters"] < 0.6 * 4 * plan["parameters"]
        and plan["exchanges"]["all-gather over fsdp"]["bytes"] > 0
    )
    assert math.isclose(sum(plan["arguments"].values()), plan["bytes"]["arguments"], abs_tol=16)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--devices=3"], "the batch size 8 must be a multiple of the 3 devices that share it"),
        (
            ["--devices=4", "--config.parallel.strategy=mesh", "--config.parallel.fsdp=3"],
            "parallel.fsdp x parallel.tensor must divide the 4 devices, got 3 x 1",
        ),
        (["--chip=abacus"], "no chip is called 'abacus'; there are H100 SXM, "),
        (
            ["--config.stages=('gan',)"],
            "stages must be one of vqvae, diffusion, autoregressive, got 'gan'",
        ),
        (["--config.denoiser.widht=3"], "the config has no key 'widht'; did you mean 'width'?"),
        (["--devices=0"], "--devices=0"),
    ],
)
def test_wrong_flags_are_a_sentence(arguments, said):
    done = run(*arguments, ok=False)
    assert said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_unknown_config_is_a_sentence():
    done = run(config="configs/nothing.py", ok=False)
    assert (
        done.stderr.startswith("error: there is no config file configs/nothing.py")
        and "Traceback" not in done.stderr
    )
