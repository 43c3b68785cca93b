"""launch/slurm.sbatch with stand-ins for srun and scontrol; two tasks that train together are one
training.
"""

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import TINY
from helpers.launching import AWKWARD, GATE, LAUNCH, PYTHON, ROOT, Shell, executable, sentence
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, read_metrics

SCONTROL = """#!/bin/bash
[[ $1 != show ]] || { printf '%s\\n' 127.0.0.1 other; exit; }
echo "$@" >"$HOME/scontrol"
"""
SRUN = f"""#!{sys.executable} -IS
# Starts the tasks here; if one fails, it ends the others.
import json, os, subprocess, sys, time
words = sys.argv[1:]
start = words.index("bash")
flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[:start])
with open(os.environ["HOME"] + "/srun", "w") as f:
    json.dump(words, f)
tasks = []
for i in range(int(flags["ntasks"])):
    log = open(os.path.join(os.environ["HOME"], flags["output"].replace("%t", str(i))), "a")
    tasks.append(subprocess.Popen(words[start:], stdout=log, stderr=log, env=os.environ | {{"SLURM_PROCID": str(i)}}))
while None in (codes := [task.poll() for task in tasks]):
    if any(codes) and "kill-on-bad-exit" in flags:
        [task.kill() for task in tasks]
    time.sleep(0.05)
sys.exit(max(codes))
"""


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def slurm(shell):
    executable(shell.bin / "python", PYTHON)
    executable(shell.bin / "scontrol", SCONTROL)
    executable(shell.bin / "srun", SRUN)
    shell.env |= {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "127.0.0.1",
    }
    # Slurm runs a copy of the script.
    script = shutil.copy(LAUNCH / "slurm.sbatch", shell.folder / "slurm_script")
    return lambda *arguments, **kw: shell("bash", script, *arguments, **kw)


def test_slurm_trains_and_gives_back_the_status(shell, slurm):
    slurm(*AWKWARD, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]
    assert slurm("--config=x", BEHAVE="exit 2").returncode == 2
    sentence(slurm(SLURM_SUBMIT_DIR=str(shell.folder)), 2, "is not a checkout of vqd_jax")
    assert not (shell.folder / "scontrol").exists() and not (shell.folder / "srun").exists()
    assert "sbatch --nodes=2 --gpus-per-node=4" in slurm("--help", ok=True).stdout


# The real program instead of the stand-in, in training's place: it has a step to finish.
REAL = f"""#!/bin/bash
exec {sys.executable} -c '
import os, sys, time
from vqd_jax.cli import runner
from vqd_jax.runtime import signals
def main():
    with signals.deferred() as received:
        os.kill(os.getppid(), int(os.environ["NUMBER"]))
        while not received():
            time.sleep(0.05)
        print("saved")
signals.install_handlers()
sys.exit(runner.status(main))
'
"""


@pytest.mark.parametrize("program", ["stand-in", "real"])
@pytest.mark.parametrize("number,requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_requeues_when_time_is_up(shell, slurm, number, requeued, program):
    """At the time limit training saves and ends with 143. The batch script is its parent."""
    if program == "real":
        executable(shell.bin / "python", REAL)
    warn = f"kill -{int(number)} $PPID; {GATE}"
    done = slurm("--config=x", BEHAVE=warn, NUMBER=str(int(number)), PYTHONPATH=str(ROOT))
    assert done.returncode == 143 and "saved" in done.stdout.split(), done.stdout + done.stderr
    assert (shell.folder / "scontrol").exists() == requeued
    if requeued:
        assert (shell.folder / "scontrol").read_text() == "requeue 17\n"


def test_slurm_does_not_requeue_a_run_that_ended(shell, slurm):
    finishes = "trap 'exit 0' TERM; kill -USR1 $PPID; for i in {1..100}; do sleep 0.1; done"
    assert slurm("--config=x", BEHAVE=finishes).returncode == 0
    assert not (shell.folder / "scontrol").exists()


NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "40017"}


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_slurm_dry_run_prints_what_it_would_run(shell, slurm, nodes):
    printed = slurm("--dry-run", *AWKWARD, ok=True, **NODES | {"SLURM_JOB_NUM_NODES": nodes}).stdout
    assert not shell.record.exists() and not (shell.folder / "srun").exists()
    change, command = map(shlex.split, printed.splitlines())
    assert change == ["cd", str(ROOT)]
    if nodes == "1":
        assert command == ["bash", "launch/local.sh", *AWKWARD]
    else:
        assert command == [
            "srun",
            "--nodes=2",
            "--ntasks=2",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
            "--cpu-bind=none",
            "--output=vqd_jax-40017-%t.log",
            "--open-mode=append",
            "bash",
            "-c",
            'exec "$@" "--process=$SLURM_PROCID"',
            "task",
            "bash",
            "launch/local.sh",
            *AWKWARD,
            "--coordinator=127.0.0.1:12017",
            "--processes=2",
        ]


def test_slurm_starts_a_process_on_each_node_with_its_number_and_a_log(shell, slurm):
    done = slurm(
        *AWKWARD,
        ok=True,
        BEHAVE='printf "%s\\n" "$@" >"$HOME/task$SLURM_PROCID"; echo said $SLURM_PROCID',
        **NODES,
    )
    assert "the output of each node is in vqd_jax-40017-*.log" in done.stdout
    for i in range(2):
        together = ["--coordinator=127.0.0.1:12017", "--processes=2", f"--process={i}"]
        assert (shell.folder / f"task{i}").read_text().split("\n")[:-1] == [
            "-m",
            "vqd_jax.main",
            *AWKWARD,
            *together,
        ]
        assert (shell.folder / f"vqd_jax-40017-{i}.log").read_text().endswith(f"said {i}\n")


def test_slurm_ends_with_the_status_of_a_node_that_fails(shell, slurm):
    assert (
        slurm(
            "--config=x", BEHAVE="[[ $SLURM_PROCID == 1 ]] && exit 3; sleep 60", **NODES
        ).returncode
        == 3
    )


@pytest.mark.slow
def test_two_tasks_train_as_one_process_does(shell, slurm, tmp_path):
    """Each on a disk of its own; test_processes.py has those that share one."""
    cache = Path(os.environ.get("VQD_TEST_CACHE") or tmp_path / "cache")
    arguments = [
        "--config=configs/emoji.py",
        f"--config.data.cache={cache}",
        "--config.emoji.max_items=24",
        *(f"--config.{key}" for key in TINY),
        "--config.vqvae_train.examples=24",
        "--config.diffusion_train.examples=24",
        "--config.vqvae_loss.lpips=0.0",
    ]
    shell.env |= {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(tmp_path / "xla"),
    }
    # The last --workdir counts.
    executable(
        shell.bin / "srun",
        SRUN.replace(
            "words[start:], ", "words[start:] + [f\"--workdir={os.environ['HOME']}/disk{i}\"], "
        ),
    )
    port = str(os.getpid() % 20000)
    done = slurm(*arguments, timeout=400, **NODES | {"SLURM_JOB_ID": port})
    assert done.returncode == 0, done.stderr + "".join(
        f.read_text() for f in shell.folder.glob("vqd_jax-*.log")
    )
    logs = [(shell.folder / f"vqd_jax-{port}-{i}.log").read_text() for i in range(2)]
    one, two = tmp_path / "one", tmp_path / "disk0"
    shell("bash", LAUNCH / "local.sh", *arguments, f"--workdir={one}", ok=True, timeout=400)
    for stage in ("vqvae", "diffusion"):
        numbers = [
            [
                {k: v for k, v in row.items() if "/" in k and k not in TIMINGS}
                for row in read_metrics(w / stage / "metrics.jsonl")
            ]
            for w in (one, two)
        ]
        assert len(numbers[0]) == len(numbers[1]) >= 3
        for alone, together in zip(*numbers):
            assert alone.keys() == together.keys()
            np.testing.assert_allclose(
                list(together.values()),
                list(alone.values()),
                rtol=1e-4,
                err_msg=f"{stage} {alone.keys()}",
            )
        assert Checkpoints(two / stage / "checkpoints", read_only=True).steps() == [3]
    assert (two / "samples.png").is_file() and "free text" in logs[0] and "free text" not in logs[1]
    copied = {
        str(f.relative_to(tmp_path / "disk1"))
        for f in (tmp_path / "disk1").rglob("*")
        if f.is_file()
    }
    assert all(f.startswith("vqvae/checkpoints/3/") for f in copied) and len(copied) > 5
