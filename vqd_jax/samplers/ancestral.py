"""Ancestral sampling in any number of network calls, by the exact posterior; optionally with
remasking.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.posterior import Branches, branches
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.base import (
    Phase,
    even_times,
    forward_noised,
    noise,
    sample_loop,
    start_of_process,
)
from vqd_jax.samplers.categorical import sample_categorical, uniforms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """z_T -> ... -> z_0 over a falling grid of calls + 1 times, each step by the exact posterior
    q(z_s | z_t, x_0).
    """

    calls: int

    __call__ = sample_loop
    start = staticmethod(start_of_process)
    noised = staticmethod(forward_noised)

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        return [ancestral_phase(process, even_times(t_start, self.calls))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remask:
    """Ancestral steps that also send codes back to [MASK], to be drawn again (ReMDM, Wang et al.
    2025).

    Attributes:
      eta: share of the largest rate that leaves q(z_s | x_0) as it is, in [0, 1]; 0 is `Ancestral`.
      share: the last share of the calls that do so, in [0, 1].
    """

    calls: int
    eta: float = 0.02
    share: float = 0.5

    __call__ = sample_loop
    start = staticmethod(start_of_process)
    noised = staticmethod(forward_noised)

    def __post_init__(self):
        for name in ("eta", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"remasking needs {name} in [0, 1], got {getattr(self, name)}")

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        late = np.arange(self.calls) >= self.calls * (1 - self.share)
        return [ancestral_phase(process, even_times(t_start, self.calls), self.eta * late)]


def ancestral_phase(
    process: MaskAndReplace, grid: np.ndarray, remasking: np.ndarray | float = 0.0
) -> Phase:
    """Exact steps over the falling times of `grid`; the network is told the earlier, noisier one."""
    return Phase(
        update=take_branch,
        times=grid[:-1],
        numbers=branches(process, grid[1:], grid[:-1], remasking),
    )


def take_branch(
    keys: PRNGKeys, place: Any, process: MaskAndReplace, logits: Logits, z: Tokens, c: Branches
) -> Tokens:
    """z_s ~ p(z_s | z_t = z) with the coefficients of this step."""
    k, n = process.k, z.shape[1]
    c = jax.tree.map(lambda x: jnp.asarray(x, logits.dtype), c)
    floats, ints = noise(keys, place, 2)
    u = uniforms(floats, n, 5, logits.dtype)
    both = jax.vmap(lambda key: jax.random.randint(key, (n,), 0, k * max(k - 1, 1)))(ints).astype(
        z.dtype
    )
    anywhere, elsewhere = both // max(k - 1, 1), both % max(k - 1, 1)
    elsewhere = jnp.where(elsewhere == z, k - 1, elsewhere)  # uniform over the codes that are not z
    code, _, (p_own, p_other) = sample_categorical(u[:2], logits, exclude=z)
    jump = c.jump * p_other
    wander = c.wander_own * p_own + c.wander_other * p_other
    moved = jnp.where(u[2] < jump, code, jnp.where(u[2] < jump + wander, elsewhere, z))
    opened = jnp.where(u[3] < c.lands, code, anywhere)
    return jnp.where(
        z == k, jnp.where(u[2] < c.remains, z, opened), jnp.where(u[4] < c.remasks, k, moved)
    )
