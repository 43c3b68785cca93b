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
from vqd_jax.samplers.base import Known, noise
from vqd_jax.samplers.categorical import draw, uniforms

# (past, None at the first place; the tokens one place before; the place) -> (logits (b, 1, k),
# past)
Predict = Callable[[Any, Int[Array, " b"], Any], tuple[Float[Array, "b 1 k"], Any]]


@dataclasses.dataclass(frozen=True)
class Raster:
    """n calls for n tokens; the noise comes from (the image's key, the place) alone."""

    def __call__(
        self,
        keys: PRNGKeys,
        predict: Predict,
        z: Tokens,
        k: int,
        *,
        known: Known | None = None,
        trace: bool = False,
    ) -> Any:
        """Tokens in [0, k) from z, which is k everywhere; `known` tokens are kept, and seen from
        their places on.

        With `trace` returns (tokens, the states after each call (n, b, n)).
        """
        state = begin(keys, predict, z, k, known)

        def step(state, place):
            state = following(keys, predict, state, place, known)
            return state, state[1] if trace else None

        (_, z), states = jax.lax.scan(step, state, jnp.arange(1, z.shape[1]))
        return (z, jnp.concatenate([state[1][None], states])) if trace else z


def begin(
    keys: PRNGKeys, predict: Predict, z: Tokens, k: int, known: Known | None = None
) -> tuple[Any, Tokens]:
    """(past, tokens) after the first call."""
    logits, past = predict(None, jnp.full(z.shape[:1], k, z.dtype), 0)
    return past, _put(keys, logits, known.hold(z) if known else z, 0, known)


def following(
    keys: PRNGKeys,
    predict: Predict,
    state: tuple[Any, Tokens],
    place: Any,
    known: Known | None = None,
) -> tuple[Any, Tokens]:
    """(past, tokens) after the call number `place` >= 1."""
    past, z = state
    logits, past = predict(
        past, jax.lax.dynamic_index_in_dim(z, place - 1, axis=1, keepdims=False), place
    )
    return past, _put(keys, logits, z, place, known)


def _put(
    keys: PRNGKeys, logits: Float[Array, "b 1 k"], z: Tokens, place: Any, known: Known | None
) -> Tokens:
    u = uniforms(noise(keys, place, 1)[0], 1, 2, logits.dtype)
    code = draw(u, logits)[0].astype(z.dtype)
    z = jax.lax.dynamic_update_slice_in_dim(z, code, place, axis=1)
    return known.hold(z) if known else z
