"""Ancestral sampling in any number of network calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.errors import UserError
from vqd_jax.shapes import DenoiseFn, PRNGKeys, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """z_T -> ... -> z_0 over a falling grid of calls + 1 times, each step by the exact posterior q(z_s | z_t, x_0)."""

    calls: int

    def __call__(self, keys: PRNGKeys, process: MaskAndReplace, denoise: DenoiseFn, z_T: Tokens) -> Tokens:
        """Tokens in [0, k); the noise of row i depends on keys[i] and the time only."""
        if not 1 <= self.calls <= process.T:
            raise UserError(f"calls must be in 1..{process.T}, got {self.calls}")
        grid = np.round(np.linspace(process.T, 0, self.calls + 1)).astype(np.int32)

        def step(z_t, times):
            t, s = (jnp.full(z_t.shape[:1], time) for time in times)
            log_p = process.reverse(denoise(z_t, t), z_t, s, t)
            draw = lambda k, log_p: jax.random.categorical(jax.random.fold_in(k, times[0]), log_p)
            return jax.vmap(draw)(keys, log_p).astype(z_t.dtype), None

        return jax.lax.scan(step, z_T, (grid[:-1], grid[1:]))[0]


def start(keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
    """z_T without an image: each of n tokens is [MASK] with the schedule's final probability, else a uniform code."""

    def one(key):
        code_key, mask_key = jax.random.split(jax.random.fold_in(key, process.T + 1))
        code = jax.random.randint(code_key, (n,), 0, process.k)
        return jnp.where(jax.random.uniform(mask_key, (n,)) < process.unmasked[-1], code, process.k)

    return jax.vmap(one)(keys)
