"""The sampler of networks that predict z_{t-1} itself: one call for each step, of which none can be
left out.
"""

import dataclasses
from typing import Any

import numpy as np

from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.base import Stretch, diffused, noise, run, start_of_process
from vqd_jax.samplers.categorical import draw, uniforms


@dataclasses.dataclass(frozen=True)
class Previous:
    """z_T -> ... -> z_0, each from the softmax of logits over codes and [MASK]."""

    __call__ = run
    start = staticmethod(start_of_process)
    noised = staticmethod(diffused)

    def plan(self, process: MaskAndReplace, n: int, begin: int) -> list[Stretch]:
        return [Stretch(update=take, times=np.arange(begin, 0, -1, dtype=np.int32), numbers=())]


def take(
    keys: PRNGKeys, place: Any, process: MaskAndReplace, logits: Logits, z: Tokens, numbers: Any
) -> Tokens:
    """z_{t-1} ~ softmax(logits)."""
    return draw(uniforms(noise(keys, place, 1)[0], z.shape[1], 2, logits.dtype), logits)[0]
