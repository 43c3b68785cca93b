"""One token a call in raster order, each drawn from p(z_l | z_<l): the sampler of autoregressive
models.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqd_jax.core.shapes import PRNGKeys, Tokens
from vqd_jax.samplers.base import Constraint, noise
from vqd_jax.samplers.categorical import sample_categorical, uniforms

# (past, None at the first place; the tokens one place before; the place) -> (logits (b, 1, k),
# past)
Predict = Callable[[Any, Int[Array, " b"], Any], tuple[Float[Array, "b 1 k"], Any]]


@dataclasses.dataclass(frozen=True)
class AutoregressiveSampler:
    """n calls for n tokens; the noise comes from (the image's key, the place) alone."""

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
        """Tokens in [0, k) from z, which is k everywhere; `known` tokens are kept, and seen from
        their places on.

        With `trace` returns (tokens, the states after each call (n, b, n)).
        """
        state = start(keys, predict, z, k, constraint)

        def step(state, place):
            state = next_token(keys, predict, state, place, constraint)
            return state, state[1] if trace else None

        (_, z), states = jax.lax.scan(step, state, jnp.arange(1, z.shape[1]))
        return (z, jnp.concatenate([state[1][None], states])) if trace else z


def start(
    keys: PRNGKeys, predict: Predict, z: Tokens, k: int, constraint: Constraint | None = None
) -> tuple[Any, Tokens]:
    """(past, tokens) after the first call."""
    logits, past = predict(None, jnp.full(z.shape[:1], k, z.dtype), 0)
    return past, _put(keys, logits, constraint.hold(z) if constraint else z, 0, constraint)


def next_token(
    keys: PRNGKeys,
    predict: Predict,
    state: tuple[Any, Tokens],
    place: Any,
    constraint: Constraint | None = None,
) -> tuple[Any, Tokens]:
    """(past, tokens) after the call number `place` >= 1."""
    past, z = state
    logits, past = predict(
        past, jax.lax.dynamic_index_in_dim(z, place - 1, axis=1, keepdims=False), place
    )
    return past, _put(keys, logits, z, place, constraint)


def _put(
    keys: PRNGKeys,
    logits: Float[Array, "b 1 k"],
    z: Tokens,
    place: Any,
    constraint: Constraint | None,
) -> Tokens:
    u = uniforms(noise(keys, place, 1)[0], 1, 2, logits.dtype)
    code = sample_categorical(u, logits)[0].astype(z.dtype)
    z = jax.lax.dynamic_update_slice_in_dim(z, code, place, axis=1)
    return constraint.hold(z) if constraint else z
