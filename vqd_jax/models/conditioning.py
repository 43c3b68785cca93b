"""What the denoiser is conditioned on, and what stands in for it when it is dropped
(classifier-free guidance).

Each conditioner maps ids (b, m) and `drop` (b,) to (condition, mask) for
`models.denoiser.Denoiser`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vqd_jax.core.shapes import TextIds, TextMask, TextStates

Drop = Bool[Array, " b"]


class Conditioner(nn.Module):
    """Token ids to text states; where `drop` is True, null states instead.

    Attributes:
      encoder: ids (b, m) -> (states (b, m, e), mask (b, m)).
      null: "learned" states, as in Tang et al. 2022, or those of the caption with the ids `empty`.
      null_std: standard deviation of the learned states at the start.
      frozen: no gradient reaches the encoder.
    """

    encoder: nn.Module
    null: str = "learned"
    empty: tuple[int, ...] = ()
    null_std: float = 1.0
    frozen: bool = False

    @nn.compact
    def __call__(self, ids: TextIds, drop: Drop) -> tuple[TextStates, TextMask]:
        if self.null == "empty":
            ids = jnp.where(drop[:, None], jnp.array(self.empty, ids.dtype)[None], ids)
        states, mask = self.encoder(ids)
        states = jax.lax.stop_gradient(states) if self.frozen else states
        if self.null == "empty":
            return states, mask
        null = self.param("null", nn.initializers.normal(self.null_std), states.shape[1:])
        drop = drop[:, None]
        return jnp.where(drop[..., None], null[None], states), mask | drop


class ClassConditioner(nn.Module):
    """Labels (b, 1) to class indices; where `drop` is True the one after the last, which is a row
    of its own in the denoiser's tables if the null is learned, and the mean of their rows if not.
    """

    classes: int

    @nn.compact
    def __call__(self, ids: TextIds, drop: Drop) -> tuple[Int[Array, " b"], TextMask]:
        return jnp.where(drop, self.classes, ids[:, 0]), jnp.ones_like(ids, bool)


class NoConditioner(nn.Module):
    """Ids (b, 0), of which nothing is read."""

    @nn.compact
    def __call__(self, ids: TextIds, drop: Drop) -> tuple[Any, TextMask]:
        return jnp.zeros_like(drop, jnp.int32), jnp.ones_like(ids, bool)
