"""Ancestral sampling in any number of network calls by the exact posterior, optionally with
remasking.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.posterior import PosteriorCoefficients, posterior_coefficients
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.base import CallIndex, Phase, Sampler, even_times, noise_keys
from vqd_jax.samplers.categorical import sample_categorical, uniforms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """z_T -> ... -> z_0 over an even grid of times, each step by the exact posterior p(z_s | z_t).

    The step draws each token by itself: of several at a position any may come first.
    """

    calls: int

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        return [posterior_phase(process, even_times(t_start, self.calls))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remask(Sampler):
    """Ancestral steps that also return codes to [MASK], to be drawn again (ReMDM, Wang et al.
    2025).

    Attributes:
      eta: remasking rate as a fraction of the largest one that keeps q(z_s | x_0), in [0, 1]; 0 is
        `Ancestral`.
      share: the fraction of the calls, the last ones, that remask, in [0, 1].
    """

    calls: int
    eta: float = 0.02
    share: float = 0.5

    def __post_init__(self):
        for name in ("eta", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"remasking needs {name} in [0, 1], got {getattr(self, name)}")

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        late = np.arange(self.calls) >= self.calls * (1 - self.share)
        return [posterior_phase(process, even_times(t_start, self.calls), self.eta * late)]


def posterior_phase(
    process: MaskAndReplace,
    grid: Int[np.ndarray, " calls_plus_1"],
    remasking: Float[np.ndarray, " calls"] | float = 0.0,
) -> Phase:
    """Exact steps from each of the falling times of `grid` to the next one."""
    coefficients = posterior_coefficients(process, grid[1:], grid[:-1], remasking)
    return Phase(update=posterior_step, times=grid[:-1], coefficients=coefficients)


def posterior_step(
    keys: PRNGKeys,
    call: CallIndex,
    process: MaskAndReplace,
    logits: Logits,
    z: Tokens,
    coefficients: PosteriorCoefficients,
) -> Tokens:
    """z_s ~ p(z_s | z_t = z), without a (b, n, k + 1) array."""
    k, n = process.k, z.shape[1]
    c = jax.tree.map(lambda x: jnp.asarray(x, logits.dtype), coefficients)
    float_keys, int_keys = noise_keys(keys, call, 2)
    u = uniforms(float_keys, n, 5, logits.dtype)
    any_code, other_code = _uniform_codes(int_keys, n, k)
    other_code = jnp.where(other_code == z, k - 1, other_code)  # uniform over the codes except z
    code, _, (p_z, p_not_z) = sample_categorical(u[:2], logits, exclude=z)

    redrawn = c.redraw * p_not_z
    replaced = c.replace_same * p_z + c.replace_other * p_not_z
    moved = jnp.where(u[2] < redrawn + replaced, other_code, z)
    from_code = jnp.where(u[4] < c.remask, k, jnp.where(u[2] < redrawn, code, moved))
    unmasked = jnp.where(u[3] < c.from_model, code, any_code)
    from_mask = jnp.where(u[2] < c.stay_masked, z, unmasked)
    return jnp.where(z == k, from_mask, from_code).astype(z.dtype)


def _uniform_codes(keys: PRNGKeys, n: int, k: int) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """Independent uniform integers in [0, k) and in [0, k - 1), each row from its own key."""
    fewer = max(k - 1, 1)
    if k * fewer <= np.iinfo(np.int32).max:  # one draw has the bits of both
        both = jax.vmap(lambda key: jax.random.randint(key, (n,), 0, k * fewer))(keys)
        return both // fewer, both % fewer
    pairs = jax.vmap(jax.random.split)(keys)
    draw = lambda i, end: jax.vmap(lambda key: jax.random.randint(key, (n,), 0, end))(pairs[:, i])
    return draw(0, k), draw(1, fewer)
