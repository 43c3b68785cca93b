"""launch/local.sh with a stand-in for python, and what all scripts of launch/ have in common."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.launching import (
    AWKWARD,
    GATE,
    LAUNCH,
    PYTHON,
    ROOT,
    Shell,
    executable,
    sentence,
    wait_for,
)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


SHELLCHECK = shutil.which(
    "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


@pytest.mark.skipif(not SHELLCHECK, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    scripts = [
        *(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")),
        ROOT / ".ci" / "run",
    ]
    done = subprocess.run([SHELLCHECK, *map(str, scripts)], capture_output=True, text=True)
    assert len(scripts) >= 6 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "tpu_vm.sh", "tpu_worker.sh"])
def test_help_explains_with_an_example(shell, script):
    said = shell("bash", LAUNCH / script, "--help", ok=True, SLURM_SUBMIT_DIR=str(ROOT)).stdout
    assert "ARGUMENTS of python -m vqd_jax.main" in said and not re.search(
        r"^#|shellcheck", said, re.M
    )
    example = re.search(r"^  .*--config=configs/(\w+)\.py", said, re.M)
    assert script == "tpu_worker.sh" or (ROOT / "configs" / f"{example[1]}.py").is_file()


@pytest.fixture
def local(shell):
    executable(shell.bin / "python", PYTHON)
    return lambda *arguments, **kw: shell("bash", LAUNCH / "local.sh", *arguments, **kw)


def test_local_passes_arguments_and_status_through(shell, local):
    done = local(*AWKWARD, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]
    assert done.stdout.splitlines()[-1] == f"cache {shell.folder}/.cache/vqd_jax/xla in {ROOT}"
    assert local(BEHAVE="exit 7").returncode == 7
    assert local(BEHAVE="kill -TERM $$").returncode == 143  # not done
    assert "cache /elsewhere" in local(JAX_COMPILATION_CACHE_DIR="/elsewhere", ok=True).stdout


def test_local_dry_run_prints_what_it_would_run(shell, local):
    printed = local("--dry-run", *AWKWARD, ok=True).stdout
    assert not shell.record.exists()
    assert local(*AWKWARD, ok=True).stdout.startswith(printed)
    shell.record.unlink()
    shell("bash", "-c", printed, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]


@pytest.mark.parametrize(
    "given,fraction,flags",
    [
        ({}, "0.92", "--xla_gpu_enable_latency_hiding_scheduler=true"),
        (
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "XLA_FLAGS": "--xla_a=1 --xla_b=2"},
            "0.5",
            "--xla_a=1 --xla_b=2 --xla_gpu_enable_latency_hiding_scheduler=true",
        ),
        (
            {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false"},
            "0.92",
            "--xla_gpu_enable_latency_hiding_scheduler=false",
        ),
    ],
)
def test_settings_for_nvidia_gpus(shell, local, given, fraction, flags):
    executable(shell.bin / "nvidia-smi", "")
    told = 'BEHAVE=echo "$XLA_PYTHON_CLIENT_MEM_FRACTION|$XLA_FLAGS"'.partition("=")[2]
    said = local(ok=True, BEHAVE=told, **given).stdout
    assert f"{fraction}|{flags}" in said.splitlines()


def test_local_detaches_and_logs(shell, local):
    log = shell.folder / "new folder" / "train.log"
    done = local(
        "--detach",
        f"--log={log}",
        "--config=x",
        ok=True,
        BEHAVE=f"{GATE}; echo trained >&2; exit 3",
    )
    assert "trained" not in log.read_text() and f"tail -f '{log}'" in done.stdout
    assert (
        local("--detach", f"--log={log}", "--config=x", "--dry-run", ok=True).stdout.splitlines()
        == done.stdout.splitlines()[:-1]
    )
    os.kill(int(re.search(r"kill (\d+)", done.stdout)[1]), 0)  # it is there
    (shell.folder / "go").touch()
    wait_for(lambda: log.read_text().endswith("trained\n"))
    assert shell.arguments() == ["-m", "vqd_jax.main", "--config=x"]


def test_local_says_what_is_wrong(shell, local):
    sentence(local("--log="), 2, "--log needs a file")
    sentence(local(PYTHON="/no/python"), 2, "there is no /no/python on this machine")
    (shell.folder / "file").write_text("")
    sentence(local("--detach", f"--log={shell.folder}/file/log"), 2, "cannot be written")
