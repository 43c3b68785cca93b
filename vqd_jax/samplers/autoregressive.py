"""The sampler of autoregressive models: one token a call in raster order, each drawn from
p(z_i | z_<i).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqd_jax.core.shapes import PRNGKeys, Tokens
from vqd_jax.samplers.base import CallIndex, Constraint, noise_keys
from vqd_jax.samplers.categorical import sample_categorical, uniforms

# (past, token before position i, i) -> (logits of token i, past with that token's keys and values);
# the past of i = 0 is None
Predict = Callable[[Any, Int[Array, " b"], CallIndex], tuple[Float[Array, "b 1 k"], Any]]


@dataclasses.dataclass(frozen=True)
class AutoregressiveSampler:
    """n calls for n tokens; the noise depends on the image's key and the position alone."""

    def __call__(
        self,
        keys: PRNGKeys,
        predict: Predict,
        z: Tokens,
        k: int,
        *,
        constraint: Constraint | None = None,
        trace: bool = False,
    ) -> Any:
        """Samples tokens in [0, k); z is k everywhere.

        Tokens of the constraint are kept, and the network sees them from their positions on. With
        `trace` returns (tokens, the states after each call (n, b, n)).
        """
        state = start(keys, predict, z, k, constraint)

        def step(state, i):
            state = next_token(keys, predict, state, i, constraint)
            return state, state[1] if trace else None

        first = state[1]
        (_, z), states = jax.lax.scan(step, state, jnp.arange(1, z.shape[1]))
        return (z, jnp.concatenate([first[None], states])) if trace else z


def start(
    keys: PRNGKeys, predict: Predict, z: Tokens, k: int, constraint: Constraint | None = None
) -> tuple[Any, Tokens]:
    """(past, tokens) after the first call."""
    logits, past = predict(None, jnp.full(z.shape[:1], k, z.dtype), 0)
    z = constraint.apply(z) if constraint else z
    return past, _draw_token(keys, logits, z, 0, constraint)


def next_token(
    keys: PRNGKeys,
    predict: Predict,
    state: tuple[Any, Tokens],
    i: CallIndex,
    constraint: Constraint | None = None,
) -> tuple[Any, Tokens]:
    """(past, tokens) after call i >= 1, which draws token i."""
    past, z = state
    before = jax.lax.dynamic_index_in_dim(z, i - 1, axis=1, keepdims=False)
    logits, past = predict(past, before, i)
    return past, _draw_token(keys, logits, z, i, constraint)


def _draw_token(
    keys: PRNGKeys,
    logits: Float[Array, "b 1 k"],
    z: Tokens,
    i: CallIndex,
    constraint: Constraint | None,
) -> Tokens:
    u = uniforms(noise_keys(keys, i, 1)[0], 1, 2, logits.dtype)
    code = sample_categorical(u, logits)[0].astype(z.dtype)
    z = jax.lax.dynamic_update_slice_in_dim(z, code, i, axis=1)
    return constraint.apply(z) if constraint else z
