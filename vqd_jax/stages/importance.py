"""Loss-aware sampling of training times (Nichol and Dhariwal 2021; Gu et al. 2022).

A time t is drawn with probability proportional to the root mean square of the bound observed at t.
Dividing its loss by that probability keeps the expectation, with less variance.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqd_jax.core.shapes import PRNGKeys, Times

DECAY = 0.9  # of the moving average, for each occurrence of a time
WARMUP = 10  # times are uniform until each was drawn more often than this


@flax.struct.dataclass
class LossAwareTimes:
    """Statistics of the bound for each t in 1..T, stored at index t - 1.

    Attributes:
      square: moving average of the squared bound, float (T,).
      count: how often t was drawn, float (T,).
    """

    square: Any  # Any, as pytrees also hold shapes and shardings
    count: Any

    @classmethod
    def empty(cls, T: int) -> "LossAwareTimes":
        return cls(square=jnp.zeros(T), count=jnp.zeros(T))

    def probabilities(self) -> Float[Array, " t"]:
        """The probability of drawing each t.

        t = 1, whose loss is a likelihood and not a KL, gets the weight of t = 2.
        """
        weight = jnp.sqrt(self.square + 1e-10) + 1e-4
        weight = weight.at[0].set(weight[min(1, weight.size - 1)])
        uniform = jnp.full_like(weight, 1 / weight.size)
        return jnp.where(self.count.min() > WARMUP, weight / weight.sum(), uniform)

    def update(self, t: Times, bound: Float[Array, " b"], axis: str | None) -> "LossAwareTimes":
        """The statistics after a batch, which devices along `axis` share.

        Each occurrence of a time moves its average by one tenth towards the batch's mean square.
        """
        one_hot = jax.nn.one_hot(t - 1, self.square.size, dtype=bound.dtype)
        count, total = one_hot.sum(0), jnp.square(bound) @ one_hot
        if axis is not None:
            count, total = jax.lax.psum((count, total), axis)
        old, mean = DECAY**count, total / jnp.maximum(count, 1)
        return LossAwareTimes(square=old * self.square + (1 - old) * mean, count=self.count + count)


def draw_times(keys: PRNGKeys, p: Float[Array, " t"]) -> Times:
    """A time in 1..T for each key, with probabilities `p`."""
    return 1 + jax.vmap(lambda key: jax.random.choice(key, p.size, p=p))(keys)
