"""Multi-head attention with biases on every projection, as the denoiser's blocks use it.

Queries, keys and values of self-attention come from one fused product; softmax is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from vqd_jax.models.linear import Linear


def attend(q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int,
           mask: Bool[Array, "#b #q m"] | None = None) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(f)) v over `heads` heads; keys where `mask` is False get no weight."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    q, k, v = split(q), split(k), split(v)
    logits = jnp.einsum("bqaf,bmaf->baqm", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, -1e9)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    out = jnp.einsum("baqm,bmaf->bqaf", weights, v)
    return out.reshape(*out.shape[:2], -1)


class SelfAttention(nn.Module):
    """Every position attends to every position."""

    width: int
    heads: int
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(features, dtype=self.dtype, name=name,
                                                kernel_init=nn.initializers.normal(self.init_std))
        q, k, v = jnp.split(dense(3 * self.width, "qkv")(x), 3, axis=-1)
        return dense(self.width, "out")(attend(q, k, v, self.heads))


class CrossAttention(nn.Module):
    """Image positions attend to the text states."""

    width: int
    heads: int
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], text: Float[Array, "b m e"],
                 text_mask: Bool[Array, "b m"]) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(features, dtype=self.dtype, name=name,
                                                kernel_init=nn.initializers.normal(self.init_std))
        k, v = jnp.split(dense(2 * self.width, "kv")(text), 2, axis=-1)
        return dense(self.width, "out")(attend(dense(self.width, "q")(x), k, v, self.heads, text_mask[:, None]))
