"""Draws of codes from softmax(logits) with two uniforms a token, by inverting the distribution in
two levels.

The codes are cut into about sqrt(k) blocks: the first uniform chooses a block by its mass, the
second a code in it. One exponential a code is all the work; a Gumbel a code would cost k random
numbers a token.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from vqd_jax.core.chunking import map_chunks
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens

PerToken = Float[Array, "b n"]


def uniforms(keys: PRNGKeys, n: int, count: int, dtype: DTypeLike) -> Float[Array, "u b n"]:
    """`count` uniform numbers in [0, 1) for each of n tokens; row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count, n), dtype), out_axes=1)(keys)


def sample_categorical(
    u: Float[Array, "2 b n"], logits: Logits, exclude: Tokens | None = None
) -> tuple[Tokens, PerToken, Float[Array, "2 b n"]]:
    """A code for each token, never the one in `exclude` (a value of k or more excludes none).

    Returns (codes, log p of each drawn code without the exclusion, p of the excluded code and 1 -
    that: (2, b, n)); the difference is summed without the excluded code, so it keeps its digits
    when p is close to 1.
    """
    b, n, k = logits.shape
    exclude = jnp.full((b, n), k) if exclude is None else exclude
    code, log_p, own = map_chunks(
        jax.vmap(_draw), u.swapaxes(0, 1), logits, exclude, elements=n * k
    )
    return code, log_p, own.swapaxes(0, 1)


def _draw(
    u: Float[Array, "2 n"], logits: Float[Array, "n k"], exclude: Int[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, "2 n"]]:
    """`sample_categorical` for one image."""
    k = logits.shape[-1]
    size = math.isqrt(k - 1) + 1
    blocks = -(-k // size)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - top)
    is_own = jnp.arange(k, dtype=exclude.dtype)[None] == exclude[:, None]
    own = jnp.where(is_own, weights, 0).sum(-1)
    padded = jnp.pad(jnp.where(is_own, 0, weights), ((0, 0), (0, blocks * size - k)))
    mass = padded.reshape(-1, blocks, size).sum(-1)
    rest = mass.sum(-1)
    block = _invert(u[0], mass)
    codes = block[:, None] * size + jnp.arange(size)[None]
    inside = jnp.exp(jnp.take_along_axis(logits, jnp.minimum(codes, k - 1), axis=-1) - top)
    place = _invert(u[1], jnp.where((codes < k) & (codes != exclude[:, None]), inside, 0))
    chosen = jnp.take_along_axis(inside, place[:, None], axis=-1)[:, 0]
    total = own + rest
    return (
        (block * size + place).astype(exclude.dtype),
        jnp.log(chosen / total),
        jnp.stack([own / total, rest / total]),
    )


def _invert(u: Float[Array, " n"], weights: Float[Array, "n w"]) -> Int[Array, " n"]:
    """The first place where the cumulative weight passes u of the total; a place of weight 0 is
    never taken.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    place = jnp.arange(weights.shape[-1])[None]
    some = weights > 0
    passed = some & (cumulative > u[:, None] * cumulative[:, -1:])
    last = jnp.where(some, place, 0).max(-1)  # where rounding hides the end
    return jnp.minimum(jnp.where(passed, place, weights.shape[-1]).min(-1), last)
