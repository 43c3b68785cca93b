"""A small bidirectional transformer over caption tokens, trained together with the denoiser that
reads its states.

Pre-LN blocks (Xiong et al. 2020) with learned positions; padding (id 0) is never attended to.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, DTypeLike, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import TextIds, TextMask, TextStates
from vqd_jax.models.linear import Linear

INIT = nn.initializers.normal(0.02)


class LearnedText(nn.Module):
    """Token ids → float32 states for cross-attention; with `layers=0`, normalised embeddings."""

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TextIds) -> tuple[TextStates, TextMask]:
        """States and a mask that is True where the caption is (not padding)."""
        check_text_shape(ids, self.length, self.width, self.heads)
        mask = ids != 0
        x = nn.Embed(self.vocabulary, self.width, embedding_init=INIT, name="token_embedding")(ids)
        positions = self.param("position_embedding", INIT, (self.length, self.width))
        x = (x + positions[None]).astype(self.dtype)
        for i in range(self.layers):
            x = TextBlock(self.heads, nn.gelu, self.dtype, name=f"block_{i}")(
                x, mask[:, None, None, :]
            )
        return text_norm("norm")(x), mask


class TextBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    activation: Callable[[Array], Array]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: TextStates, mask: Bool[Array, "#b 1 #m m"]) -> TextStates:
        width = x.shape[-1]
        x = x + TextAttention(self.heads, self.dtype, name="attention")(
            text_norm("norm_1")(x), mask
        )
        y = Linear(4 * width, dtype=self.dtype, name="mlp_in")(text_norm("norm_2")(x))
        return x + Linear(width, dtype=self.dtype, name="mlp_out")(self.activation(y))


class TextAttention(nn.Module):
    """Multi-head self-attention with biases; queries are the second to last axis of the mask, and
    attend to the keys where it is True.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: TextStates, mask: Bool[Array, "#b 1 #m m"]) -> TextStates:
        e = x.shape[-1]

        def project(name: str) -> Float[Array, "b a m f"]:
            y = Linear(e, dtype=self.dtype, name=name)(x)
            return rearrange(y, "b m (a f) -> b a m f", a=self.heads)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("baqf,bakf->baqk", query, key, preferred_element_type=jnp.float32)
        scores = scores * (e // self.heads) ** -0.5
        # A finite floor: a caption of padding only gives a plain mean, not NaN.
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("baqk,bakf->baqf", weights, value)
        y = rearrange(y, "b a m f -> b m (a f)")
        return Linear(e, dtype=self.dtype, name="out")(y)


def text_norm(name: str) -> nn.LayerNorm:
    """LayerNorm in float32, with epsilon 1e-5."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)


def check_text_shape(ids: TextIds, length: int, width: int, heads: int) -> None:
    """UserError for ids of another length, or a width that heads do not divide."""
    if width % heads:
        raise UserError(
            f"a text width of {width} does not divide among {heads} heads: make it a multiple of "
            "their number"
        )
    if ids.shape[1] != length:
        raise UserError(f"the text encoder takes {length} tokens per caption, got {ids.shape[1]}")
