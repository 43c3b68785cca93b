"""Workdirs of tiny, randomly initialised models of every kind."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from helpers.commands import run_in_process
from vqd_jax.config import build
from vqd_jax.config.defaults import defaults
from vqd_jax.data.source import Record
from vqd_jax.diffusion import schedules
from vqd_jax.models.weights import exported as own
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.workdir import Workdir

ALL_CODES, E = 24, 16
SMALL = {
    "data.image_size": 16,
    "vqvae.channels": 8,
    "vqvae.latent_width": 8,
    "codebook.codes": 20,
    "codebook.width": 6,
    "process.T": 10,
    "denoiser.layers": 2,
    "denoiser.width": 12,
    "denoiser.heads": 3,
    "learned_text.width": 8,
    "learned_text.heads": 2,
    "learned_text.layers": 1,
    "learned_text.length": 8,
    "learned_text.vocabulary": 280,
    "sampling.calls": 3,
    "data.cache": "elsewhere",
}
RECORDS = [
    Record(
        item="apple",
        style="google",
        captions=("a google style emoji of a red apple", "two apples"),
        split="train",
    )
]
T10 = schedules.released(10, 20)
TABLES = [
    np.log(np.roll(x, -1) + 1e-300).tolist()
    for x in (
        np.multiply(T10.unmasked, T10.intact),
        np.multiply(T10.unmasked, np.subtract(1, T10.intact)) / 20,
    )
]
MODELS = {
    "text": {
        "denoiser.head": "tied",
        "denoiser.time": "sinusoidal",
        "codebook.updates": "gradient",
    },
    "class": {
        "condition.kind": "class",
        "condition.classes": 4,
        "condition.null": "empty",
        "denoiser.mlp": "conv",
        "denoiser.positions": (8, 8),
        "process.schedule": "stored",
        "process.log_alpha": TABLES[0],
        "process.log_beta": TABLES[1],
    },
    "none": {
        "condition.kind": "none",
        "vqvae.middle_attention": True,
        "vqvae.attention_resolutions": (8,),
    },
    "clip": {
        "text.encoder": "clip",
        "clip_text.width": E,
        "clip_text.layers": 2,
        "clip_text.heads": 1,
    },
}


def settings(changes):
    config = defaults()
    for key, value in (SMALL | changes).items():
        section, name = key.split(".")
        with config[section].ignore_type():
            config[section][name] = value
    return config


def numbers(shapes, seed):
    """Random arrays in which no bias is 0 and no gain 1; the tables of a remap come from elsewhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def make_workdir(
    workdir, changes, tokenizer=None, *, converted=False, plan=False, stages=("diffusion",)
):
    """A workdir with a small random model, whose codec, if `converted`, has a projection and more
    codes than tokens.
    """
    config = settings(changes)
    codec, k, width = build.vqvae_stage(config), config.codebook.codes, config.codebook.width
    groups = config.codebook.groups
    images = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
    shapes = jax.eval_shape(codec.model.init, jax.random.key(0), images)["params"]
    weights = numbers(
        {"vqvae": shapes, "codes": np.zeros((ALL_CODES if converted else groups * k, width))}, 0
    )
    if converted:
        remap = np.arange(ALL_CODES)[::-1] % k
        weights |= {
            "remap": remap.astype(np.int32),
            "inverse": np.unique(remap, return_index=True)[1].astype(np.int32),
        }
        weights["projection"] = numbers(
            {"kernel": np.zeros((width, ALL_CODES)), "bias": np.zeros(ALL_CODES)}, 1
        )
    stored = json.loads(config.to_json())
    with Checkpoints(Workdir(workdir).checkpoints("vqvae")) as checkpoints:
        checkpoints.save(7, {"config": stored, "weights": weights}, wait=True)
    tokenizer = tokenizer or build.tokenizer(config, RECORDS)
    batch = {"text": jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32)}
    for stage in stages:
        weights = numbers(
            jax.eval_shape(
                build.TOKEN_STAGES[stage](config, tokenizer).init, jax.random.key(0), batch
            )[0],
            2,
        )
        with Checkpoints(Workdir(workdir).checkpoints(stage)) as checkpoints:
            checkpoints.save(
                9,
                {"config": stored, "weights": weights, "tokenizer": tokenizer.to_json()},
                wait=True,
            )
    if plan:
        n = build.diffusion_stage(config, tokenizer).tokens
        entropy = np.arange(n, 0, -1.0)
        np.savez(Workdir(workdir).plan, random=entropy, halton=np.triu(np.tile(entropy, (n, 1))))
    return workdir


def made(name, *args):
    """What a command printed."""
    return run_in_process(name, *args).stdout


def items(workdir, stage):
    checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
    return checkpoints.latest_step(), {
        name: checkpoints.restore(name) for name in ("weights", *own.ITEMS[stage][1:])
    }


def same_arrays(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, two)


FITTING = {
    "text.encoder": "clip",
    "clip_text.width": E,
    "clip_text.layers": 2,
    "clip_text.heads": 1,
    "vqvae.resampling": "conv",
    "vqvae.patch_size": 1,
    "vqvae.channels": 32,
    "process.schedule": "released",
}
