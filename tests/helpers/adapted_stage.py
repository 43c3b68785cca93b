"""Small diffusion stages with an adapter, and random parameters for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from helpers.diffusion_stage import K, T, batch, make
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.text_clip import ClipText
from vqd_jax.stages.lora import Adapter


def stage_of(kind, **fields):
    """A small stage of each kind of model with an adapter in all its kernels; class and
    unconditional ones have convolutions.
    """
    one = make(drop_caption=0.3)
    text = kind in ("text", "clip")
    denoiser = Denoiser(
        codes=K,
        grid=(2, 2),
        T=T,
        layers=2,
        width=8,
        heads=2,
        mlp_ratio=2,
        condition="text" if text else kind,
        mlp="fc" if text else "conv",
        classes=6,
    )
    clip = Conditioner(
        encoder=ClipText(vocabulary=6, length=3, width=8, layers=1, heads=1), frozen=True
    )
    conditioner = {
        "text": one.conditioner,
        "clip": clip,
        "class": ClassConditioner(classes=5),
        "none": NoConditioner(),
    }[kind]
    return dataclasses.replace(
        one,
        denoiser=denoiser,
        conditioner=conditioner,
        adapter=Adapter(**dict(rank=2, alpha=6.0, kernels="all") | fields),
    )


@functools.cache
def drawn(stage):
    """Parameters large enough that everything depends on all of them; `up` is 0 all the same."""
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), batch(4))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes
    )
    return params | {"adapter": stage.adapter.init(jax.random.key(1), params["denoiser"])}


def moved(params):
    """With an `up` that is not 0."""
    rng = np.random.default_rng(1)
    shift = lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
    return params | {"adapter": jax.tree.map(shift, params["adapter"])}
