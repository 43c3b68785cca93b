"""Dropout whose numbers do not depend on how many devices share a batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

STREAM = 2**31 - 1  # folded into the key of a step, into which smaller numbers, of rows, are, too


class Dropout(nn.Module):
    """Sets elements to 0 with probability `rate` and scales the others by 1 / (1 - rate).

    The mask of an example follows from the rng "dropout" and from the example's position in the
    global batch; without `rows`, these positions, nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], rows: Int[Array, " b"] | None
    ) -> Float[Array, "b n d"]:
        if rows is None or not self.rate:
            return x
        keys = jax.vmap(functools.partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)
