"""A tiny stage of each kind, with dropout, and a batch for them."""

import jax
import numpy as np

from vqd_jax.core.pace import Pace
from vqd_jax.diffusion import schedules
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.conditioning import Conditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.discriminator import PatchGAN
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.diffusion import DiffusionLoss, DiffusionStage
from vqd_jax.stages.vqvae import VQVAELoss, VQVAEStage

CODEC = VQVAEStage(  # small networks: most of the time is compilation
    model=VQVAE(
        channels=4,
        multipliers=(1,),
        residual_blocks=0,
        attention_resolutions=(),
        middle_attention=False,
        resampling="fold",
        patch_size=2,
        latent_width=4,
        code_width=3,
    ),
    codebook=Codebook(codes=6, width=3, restart_every=1, restart_below=0.9),
    discriminator=PatchGAN(width=4, layers=1),
    weights=VQVAELoss(
        l1=1.0,
        l2=0.5,
        commitment=0.25,
        lpips=0.0,
        lpips_examples=0,
        adversarial=0.5,
        adversarial_start=0,
        adversarial_adaptive=True,
    ),
    pace=Pace(8),
)
DIFFUSION = DiffusionStage(
    process=schedules.paper(6, 6),
    denoiser=Denoiser(
        codes=6, grid=(4, 4), T=6, layers=1, width=8, heads=2, mlp_ratio=2, dropout=0.1
    ),
    conditioner=Conditioner(
        encoder=LearnedText(vocabulary=9, length=5, width=8, layers=1, heads=2)
    ),
    codec=CODEC,
    weights=DiffusionLoss(
        auxiliary=0.1, adaptive_auxiliary=True, importance=True, drop_caption=0.4
    ),
)
AUTOREGRESSIVE = AutoregressiveStage(
    network=Autoregressive(
        codes=6, grid=(4, 4), layers=1, width=8, heads=2, mlp_ratio=2, dropout=0.1
    ),
    conditioner=DIFFUSION.conditioner,
    codec=CODEC,
    drop_caption=0.4,
)
STAGES = {"vqvae": CODEC, "diffusion": DIFFUSION, "autoregressive": AUTOREGRESSIVE}


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "text": rng.integers(1, 9, (8, 5)),
        "tokens": rng.integers(0, 6, (8, 16)),
    }


def close(a, b, tolerance=1e-4):
    """Compares trees of gradients. A bias before a norm has a gradient of rounding errors alone: it
    is measured by the largest of the tree.
    """
    a, b = jax.tree.map(np.asarray, (a, b))
    largest = max((np.abs(y).max() for y in jax.tree.leaves(b)), default=0)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * max(np.abs(y).max(), 0.1 * largest)
        )
