"""A fresh denoiser over the codec of another workdir."""

import shutil

import numpy as np
import pytest

from helpers.commands import run, run_in_process, training
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.train.experiment import Experiment
from vqd_jax.train.resume import with_model_of


@pytest.fixture(scope="module")
def codec(trained, tmp_path_factory):
    """A workdir with a trained codec and nothing else."""
    folder = tmp_path_factory.mktemp("codec") / "run"
    shutil.copytree(trained[0] / "vqvae", folder / "vqvae")
    return folder


def test_the_codec_comes_from_there_and_everything_else_from_the_config(codec):
    config = defaults()
    config.vqvae.channels, config.denoiser.layers, config.data.image_size = 24, 7, 96
    merged = with_model_of(codec, config)
    assert (merged.vqvae.channels, merged.codebook.codes, merged.data.image_size) == (8, 32, 32)
    assert merged.stages == ("diffusion",) and merged.denoiser.layers == 7
    config.stages = ("vqvae", "autoregressive")
    assert with_model_of(codec, config).stages == ("autoregressive",)


def test_an_adapter_needs_more_than_a_codec(codec, tmp_path):
    config = defaults()
    config.init_from, config.adapter.rank = str(codec), 4
    with pytest.raises(UserError, match="an adapter changes a trained diffusion model"):
        Experiment(config, tmp_path)


@pytest.mark.slow  # 15 s; a command of docs/published.md has this start, too
def test_it_trains_and_draws(codec, cache, tmp_path):
    workdir = tmp_path / "run"
    wrong = "--config.vqvae.channels=24"  # that of the codec counts
    done = run(*training(workdir, cache, f"--config.init_from={codec}", wrong))
    assert "diffusion: 0 of 6 steps of 8 done" in done.stdout and "vqvae:" not in done.stdout
    weights = [
        Checkpoints(Workdir(x).checkpoints("vqvae"), read_only=True).restore("weights")
        for x in (codec, workdir)
    ]
    np.testing.assert_array_equal(weights[0]["codes"], weights[1]["codes"])
    prompt = "--prompt=a google style emoji of a dog"
    run_in_process("sample", f"--workdir={workdir}", prompt, "--num=1", f"--out={tmp_path}/x.png")
