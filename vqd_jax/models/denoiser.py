"""The denoising transformer of VQ-Diffusion: image tokens and a time in, logits of the clean tokens out.

Each layer is h += SA(AdaLN(h, t)); h += CA(AdaLN(h, t), text); h += MLP(LN(h)) (Gu et al. 2022, section 4.2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.errors import UserError
from vqd_jax.models.attention import CrossAttention, SelfAttention
from vqd_jax.models.linear import Linear, product
from vqd_jax.shapes import Logits, TextMask, TextStates, Times, Tokens


def gelu2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), the sigmoid form of GELU that the released models use."""
    return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """Normalises the last axis in float32, without gain or bias; epsilon 1e-5."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - x32.mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)


class AdaLayerNorm(nn.Module):
    """LN(h) * (1 + scale) + shift, with (scale, shift) a linear map of SiLU(E[t]); every one has its own E."""

    T: int
    time: str
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"], t: Times) -> Float[Array, "b n d"]:
        d, normal = h.shape[-1], nn.initializers.normal(self.init_std)
        if self.time == "learned":
            e = nn.Embed(self.T, d, embedding_init=normal, name="table")(t - 1)
        else:
            e = sinusoid(t, self.T, d)
        change = Linear(2 * d, dtype=self.dtype, kernel_init=normal, name="linear")(jax.nn.silu(e))
        scale, shift = jnp.split(change[:, None, :], 2, axis=-1)
        return layer_norm(h) * (1 + scale) + shift


def sinusoid(t: Times, T: int, d: int) -> Float[Array, "b d"]:
    """[sin, cos] of 4000 (t - 1) / T at d / 2 frequencies from 1 down to 1e-4."""
    z = (t - 1).astype(jnp.float32)[:, None] * (4000 / T)
    f = jnp.exp(-jnp.arange(d // 2) * (jnp.log(10_000.0) / (d // 2 - 1)))[None, :]
    return jnp.concatenate([jnp.sin(z * f), jnp.cos(z * f)], axis=-1)


class Block(nn.Module):
    """One layer of the denoiser."""

    heads: int
    mlp_ratio: int
    T: int
    time: str
    init_std: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"], t: Times, text: TextStates, text_mask: TextMask,
                 deterministic: bool) -> Float[Array, "b n d"]:
        d = h.shape[-1]
        shared = dict(init_std=self.init_std, dtype=self.dtype)
        norm = lambda name: AdaLayerNorm(T=self.T, time=self.time, name=name, **shared)
        dense = lambda features, name: Linear(features, dtype=self.dtype, name=name,
                                                kernel_init=nn.initializers.normal(self.init_std))
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        h = h + drop(SelfAttention(d, self.heads, name="self_attention", **shared)(norm("norm1")(h, t)))
        h = h + drop(CrossAttention(d, self.heads, name="cross_attention", **shared)(
            norm("norm2")(h, t), text, text_mask))
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm3")(h)
        return h + drop(dense(d, "mlp_out")(gelu2(dense(self.mlp_ratio * d, "mlp_in")(x))))


class Denoiser(nn.Module):
    """p(x_0 | x_t, t, text) as unnormalised log-probabilities of the k codes.

    Attributes:
      codes: k; the input vocabulary is k + 1, with [MASK] last.
      grid: (h, w) of the token grid; position l is row l // w, column l % w.
      T: diffusion steps; times fed in are 1..T.
      time: "learned" (a table for each AdaLN) or "sinusoidal".
      head: "linear", as published, or "tied": the token embedding read backwards, so that a network at its start already
        tends to copy the tokens that are not [MASK].
      dtype: of the matrix products; parameters, norms, softmax and logits are float32.
    """

    codes: int
    grid: tuple[int, int]
    T: int
    layers: int = 19
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    time: str = "learned"
    head: str = "linear"
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z_t: Tokens, t: Times, text: TextStates, text_mask: TextMask,
                 deterministic: bool = True) -> Logits:
        if self.time not in ("learned", "sinusoidal"):
            raise UserError(f"denoiser.time must be learned or sinusoidal, got {self.time!r}")
        if self.head not in ("linear", "tied"):
            raise UserError(f"denoiser.head must be linear or tied, got {self.head!r}")
        if self.width % self.heads:
            raise UserError(f"denoiser.width {self.width} must be a multiple of denoiser.heads {self.heads}")
        normal = nn.initializers.normal(self.init_std)
        embed = lambda size, name: nn.Embed(size, self.width, embedding_init=normal, name=name)
        h, w = self.grid
        place = jnp.arange(h * w)
        position = embed(h, "rows")(place // w) + embed(w, "columns")(place % w)
        tokens = embed(self.codes + 1, "tokens")
        x = (tokens(z_t) + position[None]).astype(self.dtype)
        text = text.astype(self.dtype)
        for i in range(self.layers):
            x = Block(self.heads, self.mlp_ratio, self.T, self.time, self.init_std, self.dropout, self.dtype,
                      name=f"block{i}")(x, t, text, text_mask, deterministic)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        if self.head == "tied":
            kernel = tokens.embedding[:-1].T.astype(self.dtype)
            bias = self.param("head_bias", nn.initializers.zeros, (self.codes,))
            return product(x, kernel).astype(jnp.float32) + bias[None, None]
        return Linear(self.codes, dtype=self.dtype, kernel_init=normal, name="head")(x).astype(jnp.float32)
