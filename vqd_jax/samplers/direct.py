"""The sampler of networks that predict z_{t-1} itself: one call for each step, of which none can be
left out.
"""

import dataclasses
from typing import Any

import numpy as np

from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.base import Phase, Sampler, noise_keys
from vqd_jax.samplers.categorical import sample_categorical, uniforms


@dataclasses.dataclass(frozen=True)
class DirectSampler(Sampler):
    """z_T -> ... -> z_0, each from the softmax of logits over codes and [MASK]."""

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        return [Phase(update=take, times=np.arange(t_start, 0, -1, dtype=np.int32), coefficients=())]


def take(
    keys: PRNGKeys, place: Any, process: MaskAndReplace, logits: Logits, z: Tokens, numbers: Any
) -> Tokens:
    """z_{t-1} ~ softmax(logits)."""
    return sample_categorical(
        uniforms(noise_keys(keys, place, 1)[0], z.shape[1], 2, logits.dtype), logits
    )[0]
