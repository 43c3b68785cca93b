"""Training whose workdir is in a bucket, of a Cloud Storage in memory: killed, resumed on another
machine and by two processes, always as with a local folder; images are drawn from it.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from helpers import ROOT, fake_gcs
from helpers.commands import TINY
from helpers.emoji_set import emoji_cache
from helpers.ports import free_port
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS
from vqd_jax.runtime.workdir import Workdir

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow
FINAL = 6


@pytest.fixture(scope="module")
def server():
    with fake_gcs.running() as server:
        yield server


@pytest.fixture(scope="module")
def command(server, tmp_path_factory):
    """Starts `python -m vqd_jax…` with a home folder, which is that of a machine."""
    cache, programs = emoji_cache(), tmp_path_factory.mktemp("programs")

    def start(home, *words):
        env = os.environ | fake_gcs.environment(server)
        env |= {
            "HOME": str(home),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(programs),
        }
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    start.cache = cache
    return start


def training(command, workdir, *more):
    settings = [f"--config.{key}" for key in (*TINY, f"data.cache={command.cache}")]
    return ["vqd_jax.main", "--config=configs/emoji.py", f"--workdir={workdir}", *settings, *more]


def finished(process):
    said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    home = tmp_path_factory.mktemp("local")
    finished(command(home, *training(command, home / "run")))
    return home / "run"


def names(server, prefix):
    return [key[1] for key in sorted(server.storage.objects) if key[1].startswith(prefix)]


def state(server, name, stage, folder):
    """The state of the last step of a stage, from a copy of what the bucket has."""
    for key, (content, *_) in list(server.storage.objects.items()):
        if key[1].startswith(f"{name}/"):
            file = folder / key[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    with Checkpoints(Workdir(folder / name).checkpoints(stage), read_only=True) as checkpoints:
        assert checkpoints.latest_step() == FINAL
        return checkpoints.restore("state")


def rows(text):
    keep = lambda row: {k: v for k, v in row.items() if k not in TIMINGS}
    return [keep(json.loads(line)) for line in text.splitlines()]


def test_a_killed_run_resumes_on_another_machine(server, command, alone, tmp_path):
    first = command(tmp_path / "first", *training(command, "gs://bucket/killed"))
    deadline = time.monotonic() + 600
    while "killed/diffusion/checkpoints/3/sha256.json" not in names(server, "killed/diffusion"):
        assert first.poll() is None and time.monotonic() < deadline, first.stdout.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    said = finished(command(tmp_path / "second", *training(command, "gs://bucket/killed")))
    assert "vqvae: all 6 steps are done" in said
    for stage in ("vqvae", "diffusion"):
        jax.tree.map(
            np.testing.assert_array_equal,
            state(server, "killed", stage, tmp_path / "copy"),
            Checkpoints(Workdir(alone).checkpoints(stage), read_only=True).restore("state"),
        )
    # what is not a checkpoint is there too; the log of the killed process was only on its machine
    want = {f.relative_to(alone).as_posix() for f in alone.rglob("*") if f.is_file()}
    want = {x for x in want if "/tensorboard/" not in x and not x.startswith((".", "cache/"))}
    got = {x.removeprefix("killed/") for x in names(server, "killed/")}
    missing = {x for x in want - got if "checkpoints/" not in x}
    assert not missing - {"vqvae/reconstructions-00000003.png"}
    log = (tmp_path / "copy/killed/diffusion/metrics.jsonl").read_text()
    assert rows(log)[-3:] == rows((alone / "diffusion/metrics.jsonl").read_text())[-3:]

    out = tmp_path / "drawn.png"
    how = ["--prompt=a google style emoji of a dog", "--seed=3"]
    for workdir, file in (("gs://bucket/killed", out), (alone, tmp_path / "local.png")):
        words = ["vqd_jax", "sample", f"--workdir={workdir}", f"--out={file}", *how]
        finished(command(tmp_path / "third", *words))
    from PIL import Image

    pixels = [np.asarray(Image.open(f)) for f in (out, tmp_path / "local.png")]
    np.testing.assert_array_equal(*pixels)


def test_two_processes_write_their_parts(server, command, alone, tmp_path):
    together = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    together += ["--config.parallel.strategy=mesh", "--config.parallel.fsdp=2"]
    tasks = [
        command(
            tmp_path / f"machine{i}",
            *training(command, "gs://bucket/together", *together, f"--process={i}"),
        )
        for i in range(2)
    ]
    for task in tasks:
        finished(task)
    for stage in ("vqvae", "diffusion"):
        parts = {
            name.split("/state/")[1].split("/")[0]
            for name in names(server, f"together/{stage}/checkpoints/6/state/ocdbt")
        }
        assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
        state(server, "together", stage, tmp_path / "copy")
        losses = [
            [row["train/loss"] for row in rows(file.read_text()) if "train/loss" in row]
            for file in (
                tmp_path / "copy/together" / stage / "metrics.jsonl",
                alone / stage / "metrics.jsonl",
            )
        ]
        np.testing.assert_allclose(*losses, rtol=1e-3)
        assert len(losses[0]) == FINAL


@pytest.mark.parametrize(
    "workdir,said",
    [
        ("gs://bucket", "write a local folder or gs://BUCKET/FOLDER"),
        ("s3://bucket/run", "write a local folder or gs://BUCKET/FOLDER"),
        ("gs://bucket/none", "there is no workdir gs://bucket/none"),
        ("gs://forbidden/run", "error: cannot read gs://forbidden/run: "),
    ],
)
def test_other_addresses_get_a_sentence(command, tmp_path, workdir, said):
    task = command(tmp_path, "vqd_jax", "sample", f"--workdir={workdir}", "--prompt=a dog")
    text = task.communicate(timeout=60)[0]
    assert task.returncode and said in text and "Traceback" not in text
