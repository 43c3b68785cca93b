"""Conditions of the denoiser, and the null condition that replaces dropped ones (classifier-free
guidance).

Each conditioner maps ids (b, m) and `drop` (b,) to (condition, mask) for
`models.denoiser.Denoiser`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vqd_jax.core.shapes import TextIds, TextMask, TextStates

Drop = Bool[Array, " b"]


class Conditioner(nn.Module):
    """Token ids to text states; null states where `drop` is True.

    Attributes:
      encoder: ids (b, m) -> (states (b, m, e), mask (b, m)).
      null: "learned" states, as in Tang et al. 2022, or the states of the "empty" caption.
      empty: token ids of the empty caption.
      null_std: initial standard deviation of the learned states.
      frozen: stops the gradient at the encoder.
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
    """Labels (b, 1) to class indices; `classes`, one beyond the last, where `drop` is True.

    The denoiser's tables have a row for that index if the null is learned; otherwise it selects the
    mean of their rows.
    """

    classes: int

    @nn.compact
    def __call__(self, ids: TextIds, drop: Drop) -> tuple[Int[Array, " b"], TextMask]:
        return jnp.where(drop, self.classes, ids[:, 0]), jnp.ones_like(ids, bool)


class NoConditioner(nn.Module):
    """No condition: ids (b, 0) are ignored, and the condition is 0."""

    @nn.compact
    def __call__(self, ids: TextIds, drop: Drop) -> tuple[Int[Array, " b"], TextMask]:
        return jnp.zeros_like(drop, jnp.int32), jnp.ones_like(ids, bool)
