"""Small files in the layouts of the released models."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from helpers import ROOT
from vqd_jax.samplers.base import Phase, all_masked, masked_at

T, CODES, ALL_CODES, SIDE, SIZE, E = 10, 20, 24, 8, 16, 16
REMAP = np.array([0, 0, *range(1, 10), 0, *range(10, 18), 0, 18, 0, 19])
VARIANTS = {
    "text": dict(condition="text", mlp="fc", positions=(8, 8)),
    "text conv": dict(condition="text", mlp="conv", positions=(8, 8)),
    "class": dict(condition="class", mlp="conv", positions=(16, 16), class_rows=5),
    "class mean": dict(condition="class", mlp="conv", positions=(16, 16), class_rows=4),
    "none": dict(condition="none", mlp="conv", positions=(16, 16)),
}


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "vqd_jax", "convert", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def write_yaml(path, variant, classes=4):
    """Writes a config in the format of the released files, with their tuples."""
    tables = ", ".join(map(str, variant["positions"]))
    path.write_text(f"""
model:
  target: image_synthesis.modeling.models.dalle.DALLE
  params:
    content_codec_config: {{params: {{num_tokens: {ALL_CODES}, quantize_number: {CODES}}}}}
    diffusion_config:
      params:
        adaptive_auxiliary_loss: true
        auxiliary_loss_weight: 5.0e-4
        diffusion_step: {T}
        condition_emb_config: {{params: {{num_embed: {classes}}}}}
        content_emb_config: {{params: {{num_embed: {CODES}, spatial_size: !!python/tuple [{tables}]}}}}
        transformer_config: {{params: {{n_layer: 2, n_embd: 12, n_head: 3, content_spatial_size: [{SIDE}, {SIDE}]}}}}
""")
    return path


@dataclasses.dataclass(frozen=True, eq=False)
class Gumbel:
    """Ancestral sampling with every time step and given Gumbel noise (calls, b, n, k + 1)."""

    noise: np.ndarray
    start, noised = staticmethod(all_masked), staticmethod(masked_at)

    def plan(self, process, n, begin):
        return [
            Phase(update=self.update, times=np.arange(process.T, 0, -1), coefficients=self.noise)
        ]

    def update(self, keys, place, process, logits, z, noise):
        t = jnp.full(z.shape[:1], process.T - place)
        return (process.reverse(jax.nn.log_softmax(logits), z, t - 1, t) + noise).argmax(-1)
