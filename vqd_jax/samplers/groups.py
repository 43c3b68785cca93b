"""The order of the tokens of one position: where a codec has several groups of codes, samplers that
choose an order draw a coarse code before the finer ones of its position.

Tokens are ordered by group, then by position, the coarsest group first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

LOG_NONE = -1e30  # score of tokens that are not [MASK]


def reveal_ranks(
    score: Float[Array, "b n"], masked: Bool[Array, "b n"], groups: int, *, adaptive: bool
) -> Int[Array, "b n"]:
    """The rank of each token in the order in which [MASK] is revealed: those of the highest score
    first, those that are not masked last.

    The masked tokens of a position are revealed from the coarsest to the finest. If the scores are
    `adaptive`, which means that they belong to the token and its logits, a token whose coarser ones
    are masked comes after all tokens without any. Otherwise the scores of a position are permuted.
    """
    score = jnp.where(masked, score, LOG_NONE)
    if groups > 1 and not adaptive:
        score = coarse_first(score, masked, groups)
    rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1)
    if groups == 1 or not adaptive:
        return rank
    count = masked.reshape(masked.shape[0], groups, -1).astype(jnp.int32)
    coarser = (jnp.cumsum(count, axis=1) - count).reshape(masked.shape)
    late = jnp.where(masked, coarser, groups) * masked.shape[1] + rank
    return jnp.argsort(jnp.argsort(late, axis=-1), axis=-1)


def coarse_first(
    score: Shaped[Array, "b n"], masked: Bool[Array, "b n"], groups: int
) -> Shaped[Array, "b n"]:
    """The scores, permuted among the masked tokens of each position so that they fall from the
    coarsest to the finest. Those of other tokens are the lowest.
    """
    score, masked = (x.reshape(x.shape[0], groups, -1) for x in (score, masked))
    falling = -jnp.sort(-score, axis=1)
    place = jnp.where(masked, jnp.cumsum(masked, axis=1) - 1, groups - 1)
    return jnp.take_along_axis(falling, place, axis=1).reshape(score.shape[0], -1)
