"""Dropout whose numbers do not depend on how many devices share a batch."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt16

from vqd_jax.core.shapes import PRNGKey

LEVELS = 2**16
STREAM = 2**31 - 1  # folded into the key of a step, into which smaller numbers, of rows, are, too


class Dropout(nn.Module):
    """Sets elements to 0 with probability `rate`, to the nearest multiple of 2^-16, and scales the
    others so that the mean stays.

    The mask of an example follows from the rng "dropout" and from the example's position in the
    global batch; without `rows`, these positions, nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], rows: Int[Array, " b"] | None
    ) -> Float[Array, "b n d"]:
        dropped = min(round(self.rate * LEVELS), LEVELS - 1)
        if rows is None or not dropped:
            return x
        keys = jax.vmap(functools.partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
        bits = jax.vmap(functools.partial(uniform, size=math.prod(x.shape[1:])))(keys)
        keep = bits.reshape(x.shape) >= dropped
        return jnp.where(keep, x * (LEVELS / (LEVELS - dropped)), 0)


def uniform(key: PRNGKey, size: int) -> UInt16[Array, " size"]:
    """Random integers below LEVELS, two of each word of the generator, which is slow on a CPU."""
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
