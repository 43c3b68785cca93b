"""Text for the denoiser: a text encoder, and what stands in for the caption when it is dropped (classifier-free guidance)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool

from vqd_jax.shapes import TextIds, TextMask, TextStates


class Conditioner(nn.Module):
    """Token ids to text states; where `drop` is True, the learned null states of Tang et al. 2022 instead.

    Attributes:
      encoder: ids (b, m) -> (states (b, m, e), mask (b, m)).
      null_std: standard deviation of the null states at the start.
    """

    encoder: nn.Module
    null_std: float = 1.0

    @nn.compact
    def __call__(self, ids: TextIds, drop: Bool[Array, " b"]) -> tuple[TextStates, TextMask]:
        states, mask = self.encoder(ids)
        null = self.param("null", nn.initializers.normal(self.null_std), states.shape[1:])
        drop = drop[:, None]
        return jnp.where(drop[..., None], null[None], states), mask | drop
