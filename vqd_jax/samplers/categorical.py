"""Draws of codes from softmax(logits) with two uniforms a token, by inverting the cumulative
distribution in two levels.

The codes are divided into about sqrt(k) blocks. The first uniform chooses a block by its mass, the
second a code within it. This costs one exponential a code; the Gumbel trick costs a random number
for each.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from vqd_jax.core.chunking import map_chunks
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens

PerToken = Float[Array, "b n"]


def uniforms(keys: PRNGKeys, n: int, count: int, dtype: DTypeLike) -> Float[Array, "u b n"]:
    """`count` uniform numbers in [0, 1) for each of n tokens, each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count, n), dtype), out_axes=1)(keys)


def sample_categorical(
    u: Float[Array, "2 b n"], logits: Logits, exclude: Tokens | None = None
) -> tuple[Tokens, PerToken, Float[Array, "2 b n"]]:
    """Draws a code for each token, never the code in `exclude`; k or more excludes none.

    Returns (codes, log p of each drawn code without the exclusion, (p, 1 - p) of the excluded
    code). 1 - p is a sum without that code, so it keeps its digits when p is close to 1.
    """
    b, n, k = logits.shape
    exclude = jnp.full((b, n), k) if exclude is None else exclude
    code, log_p, excluded = map_chunks(
        jax.vmap(_draw), u.swapaxes(0, 1), logits, exclude, elements=n * k
    )
    return code, log_p, excluded.swapaxes(0, 1)


def _draw(
    u: Float[Array, "2 n"], logits: Float[Array, "n k"], exclude: Int[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, "2 n"]]:
    """`sample_categorical` for one image."""
    k = logits.shape[-1]
    size = math.isqrt(k - 1) + 1  # codes of a block
    blocks = -(-k // size)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - top)
    is_excluded = jnp.arange(k, dtype=exclude.dtype)[None] == exclude[:, None]
    excluded = jnp.where(is_excluded, weights, 0).sum(-1)
    padded = jnp.pad(jnp.where(is_excluded, 0, weights), ((0, 0), (0, blocks * size - k)))
    mass = padded.reshape(-1, blocks, size).sum(-1)
    rest = mass.sum(-1)

    block = _invert(u[0], mass)
    codes = block[:, None] * size + jnp.arange(size)[None]
    inside = jnp.exp(jnp.take_along_axis(logits, jnp.minimum(codes, k - 1), axis=-1) - top)
    allowed = (codes < k) & (codes != exclude[:, None])
    offset = _invert(u[1], jnp.where(allowed, inside, 0))
    chosen = jnp.take_along_axis(inside, offset[:, None], axis=-1)[:, 0]
    total = excluded + rest
    return (
        (block * size + offset).astype(exclude.dtype),
        jnp.log(chosen / total),
        jnp.stack([excluded / total, rest / total]),
    )


def _invert(u: Float[Array, " n"], weights: Float[Array, "n w"]) -> Int[Array, " n"]:
    """The first index where the cumulative weight exceeds u times the total; never one of weight
    0.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    index = jnp.arange(weights.shape[-1])[None]
    positive = weights > 0
    passed = positive & (cumulative > u[:, None] * cumulative[:, -1:])
    last = jnp.where(positive, index, 0).max(-1)  # if rounding lets no index pass
    return jnp.minimum(jnp.where(passed, index, weights.shape[-1]).min(-1), last)
