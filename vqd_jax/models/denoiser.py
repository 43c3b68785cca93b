"""The denoising transformer of VQ-Diffusion: image tokens and a time in, logits of the clean tokens
out.

Each layer is h += SA(AdaLN(h, t)); h += CA(AdaLN(h, t), text); h += MLP(LN(h)) (Gu et al. 2022,
section 4.2). Class models have no CA, and their third norm is an AdaLN on the class; unconditional
ones have neither.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params, PRNGKey, Times, Tokens
from vqd_jax.models.attention import KINDS, CrossAttention, SelfAttention
from vqd_jax.models.dropout import Dropout
from vqd_jax.models.linear import Conv, linear
from vqd_jax.models.transformer import (
    AdaLayerNorm,
    Condition,
    TokenTransformer,
    TransformerBlock,
    quick_gelu,
)

Prepared = dict[str, Array]  # of a layer, see `Denoiser.prepare`
ACCEPTED = {
    "time": ("learned", "sinusoidal"),
    "head": ("linear", "tied"),
    "mlp": ("fc", "conv"),
    "condition": ("text", "class", "none"),
    "attention": KINDS,
}


class Block(TransformerBlock):
    """One layer of the denoiser."""

    grid: tuple[int, int]
    T: int
    mlp: str
    time: str
    attention: str

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b n d"],
        t: Times,
        condition: Float[Array, "pb m e"] | Int[Array, " pb"],
        mask: Bool[Array, "pb m"],
        dropout_rows: Int[Array, " b"] | None,
        prepared: Prepared | None = None,
        prompts: int = 1,
    ) -> Float[Array, "pb n d"]:
        """The result has the rows of the condition, `prompts` for each row of h. `prepared` is the
        layer's part of `Denoiser.prepare`.
        """
        d, prepared = h.shape[-1], prepared or {}
        shared = dict(init_std=self.init_std, dtype=self.dtype)
        norm = lambda name: AdaLayerNorm(size=self.T, kind=self.time, name=name, **shared)(
            h, t - 1, prepared.get(name)
        )
        dropout = Dropout(self.dropout)
        drop = lambda x: dropout(x, dropout_rows)
        attention = shared | dict(width=d, heads=self.heads, kind=self.attention)
        attend = SelfAttention(name="self_attention", **attention)
        h = h + drop(attend(norm("norm1")))
        if prompts > 1:
            h, t = h.repeat(prompts, 0), t.repeat(prompts)
        if self.condition == "text":
            cross_attend = CrossAttention(name="cross_attention", **attention)
            h = h + drop(cross_attend(norm("norm2"), condition, mask, prepared.get("kv")))
        x = self.mlp_norm(h, condition)
        return h + drop(self.conv_mlp(x) if self.mlp == "conv" else self.linear_mlp(x))

    def conv_mlp(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Two 3x3 convolutions over the token grid, with PyTorch's initial weights."""
        d = x.shape[-1]
        h, w = self.grid
        conv = lambda features, name, fan_in: Conv(
            features,
            (3, 3),
            dtype=self.dtype,
            name=name,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=_uniform(fan_in**-0.5),
        )
        x = rearrange(x, "b (h w) d -> b h w d", h=h, w=w)
        x = quick_gelu(conv(self.mlp_ratio * d, "mlp_in", 9 * d)(x))
        x = conv(d, "mlp_out", 9 * self.mlp_ratio * d)(x)
        return rearrange(x, "b h w d -> b (h w) d")


def _uniform(limit: float) -> nn.initializers.Initializer:
    """Uniform in (-limit, limit)."""

    def init(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Denoiser(TokenTransformer, kw_only=True):
    """p(x_0 | x_t, t, condition) as unnormalised log-probabilities of the k codes.

    The transformer runs on the positions of the grid: the embeddings of all tokens of a position
    are summed, and the head gives the logits of each.

    Attributes:
      T: diffusion steps; times fed in are 1..T.
      mlp: "fc", two linear layers, or "conv", two 3x3 convolutions over the grid.
      positions: sizes of the tables of positions, if not the grid's: position l is then row l // w
        and column l % w of those, as in the released ImageNet and FFHQ models, which read 16x16
        grids through 32x32 tables.
      time: "learned" (a table for each AdaLN) or "sinusoidal".
      attention: how attention is computed, of `models.attention.KINDS`.
    """

    T: int
    mlp: str = "fc"
    positions: tuple[int, int] | tuple[()] = ()
    time: str = "learned"
    attention: str = "full"

    def prepare(self, params: Params, condition: Condition) -> dict[str, Prepared]:
        """What the layers compute from the time or the text alone, by the layer's name: scales and
        shifts of the adaptive norms at all times, keys and values of the text. Sampling computes it
        once for all calls.
        """
        norm = AdaLayerNorm(self.T, self.init_std, self.dtype, self.time, parent=None)
        names = ("norm1", "norm2") if self.condition == "text" else ("norm1",)
        out: dict[str, Prepared] = {}
        for i in range(self.layers):
            layer = params[f"block{i}"]
            out[f"block{i}"] = own = {
                name: norm.apply(
                    {"params": layer.get(name, {})},
                    jnp.arange(self.T),
                    self.width,
                    method="changes",
                )
                for name in names
            }
            if self.condition == "text":
                kv = layer["cross_attention"]["kv"]
                own["kv"] = linear(
                    condition.astype(self.dtype), kv["kernel"], kv["bias"], self.dtype
                )
        return out

    @nn.compact
    def __call__(
        self,
        z_t: Tokens,
        t: Times,
        condition: Float[Array, "pb m e"] | Int[Array, " pb"],
        mask: Bool[Array, "pb m"],
        dropout_rows: Int[Array, " b"] | None = None,
        prepared: Mapping[str, Prepared] | None = None,
        prompts: int = 1,
    ) -> Float[Array, "pb n k"]:
        """Logits for each row of the condition.

        `prepared` is the result of `prepare`. The condition has `prompts` rows one after the other
        for each row of z_t: what does not depend on it is computed once.
        """
        self.check(ACCEPTED)
        if self.positions and math.prod(self.positions) < math.prod(self.grid):
            raise UserError(
                f"denoiser.positions {self.positions} are too few for a grid of {self.grid}"
            )
        place = self.embed_positions(jnp.arange(math.prod(self.grid)), self.positions or self.grid)
        x, tables = self.embed_tokens(z_t, np.arange(self.tokens))
        if self.groups > 1:
            x = rearrange(x, "b (g l) d -> g b l d", g=self.groups).sum(0)
        x = (x + place[None]).astype(self.dtype)
        condition = condition.astype(self.dtype) if self.condition == "text" else condition
        block, first = self.block(Block), 0
        if prompts > 1:
            own = prepared and prepared["block0"]
            x = block(name="block0")(x, t, condition, mask, dropout_rows, own, prompts)
            t, first = t.repeat(prompts), 1
        call = lambda block, x, own: (block(x, t, condition, mask, dropout_rows, own), {})
        x, _ = self.run_layers(block, call, x, prepared, first)
        logits = self.logits(x, tables)
        if self.groups == 1:
            return logits
        return rearrange(logits, "b l (g k) -> b (g l) k", g=self.groups)
