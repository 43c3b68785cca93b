"""A tiny diffusion stage, its parameters and its batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.pace import Pace
from vqd_jax.diffusion import schedules
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.conditioning import Conditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.discriminator import PatchGAN
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.runtime.rows import Rows
from vqd_jax.stages.diffusion import DiffusionLoss, DiffusionStage
from vqd_jax.stages.importance import LossAwareTimes
from vqd_jax.stages.vqvae import VQVAELoss, VQVAEStage

K, T, N = 3, 4, 4
CODEC = VQVAEStage(
    model=VQVAE(
        channels=4,
        multipliers=(1,),
        residual_blocks=1,
        attention_resolutions=(),
        middle_attention=False,
        resampling="fold",
        patch_size=4,
        latent_width=4,
        code_width=2,
    ),
    codebook=Codebook(codes=K, width=2),
    discriminator=PatchGAN(width=4, layers=1),
    weights=VQVAELoss(
        l1=1.0,
        l2=0.0,
        commitment=0.0,
        lpips=0.0,
        lpips_examples=0,
        adversarial=0.0,
        adversarial_start=0,
        adversarial_adaptive=False,
    ),
    pace=Pace(4),
)
LOSS = dict(auxiliary=0.1, adaptive_auxiliary=False, importance=False, drop_caption=0.0)


def make(dropout=0.0, schedule="paper", **weights):
    return DiffusionStage(
        process=getattr(schedules, schedule)(T, K),
        denoiser=Denoiser(
            codes=K, grid=(2, 2), T=T, layers=1, width=8, heads=2, mlp_ratio=2, dropout=dropout
        ),
        conditioner=Conditioner(
            encoder=LearnedText(vocabulary=6, length=3, width=8, layers=0, heads=1)
        ),
        codec=CODEC,
        weights=DiffusionLoss(**LOSS | weights),
    )


def batch(b, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "text": jnp.asarray(rng.integers(1, 6, (b, 3))),
        "tokens": jnp.asarray(rng.integers(0, K, (b, N))),
    }


@pytest.fixture(scope="module")
def params():
    """Large enough that the logits depend on everything."""
    stage = make()
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), batch(1))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


@functools.cache
def program(stage, gradient=False):
    """The stage's compiled loss, once for equal stages."""

    def run(params, data, history, key, frozen):
        def loss(params):
            value, (aux, metrics) = stage.loss(
                params, history, frozen, data, key, jnp.int32(0), Rows.of_device(len(data["text"]))
            )
            return value, (stage.update_extra(history, aux, key, jnp.int32(0), None)[0], metrics)

        return jax.value_and_grad(loss, has_aux=True)(params) if gradient else loss(params)

    return jax.jit(run)


def evaluate(stage, params, data, history=None, seed=1, frozen=None, gradient=False):
    history = LossAwareTimes.empty(T) if history is None else history
    return program(stage, gradient)(params, data, history, jax.random.key(seed), frozen or {})


Z_0, IDS = np.array([0, 2, 1, 2]), np.array([1, 4, 2])


def tile(x, rows):
    return jnp.tile(jnp.asarray(x)[None], (rows, 1))
