"""The autoregressive twin of the denoiser (VQ-AR in Gu et al. 2022): tokens in raster order, each
from those before it.

Each layer is h += SA(LN(h)); h += CA(LN(h), text); h += MLP(LN(h)), where SA sees no later token.
Sampling keeps the keys and values of what has been seen, so that a call computes one token.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits
from vqd_jax.models.attention import attend
from vqd_jax.models.denoiser import AdaLayerNorm, Condition, apply_layers, logits_of, mlp
from vqd_jax.models.linear import Linear

Place = int | Int[Array, ""]
Past = dict[
    str, dict[str, Any]
]  # of each layer: "self" (k and v) (2, b, n, d) and, with text, "text" (2, b, m, d)


class CausalBlock(nn.Module):
    """One layer; its fields are the network's."""

    width: int
    heads: int
    mlp_ratio: int
    condition: str
    classes: int
    init_std: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b q d"],
        condition: Condition,
        mask: Bool[Array, "b m"],
        place: Place,
        past: dict[str, Any] | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "b q d"], dict[str, Any]]:
        norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(h)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        q, *kv = jnp.split(self._dense(3, "self_qkv")(norm("norm1")), 3, axis=-1)
        seen = {"self": jnp.stack(kv)}
        if past:
            seen["self"] = jax.lax.dynamic_update_slice_in_dim(
                past["self"], seen["self"], place, axis=2
            )
        visible = jnp.arange(seen["self"].shape[2])[None] <= place + jnp.arange(h.shape[1])[:, None]
        h = h + drop(
            self._dense(1, "self_out")(attend(q, *seen["self"], self.heads, visible[None]))
        )
        if self.condition == "text":
            seen["text"] = (
                past["text"]
                if past
                else jnp.stack(jnp.split(self._dense(2, "cross_kv")(condition), 2, axis=-1))
            )
            q = self._dense(1, "cross_q")(norm("norm2"))
            h = h + drop(
                self._dense(1, "cross_out")(attend(q, *seen["text"], self.heads, mask[:, None]))
            )
        if self.condition == "class":
            x = AdaLayerNorm(
                size=self.classes, init_std=self.init_std, dtype=self.dtype, name="norm3"
            )(h, condition)
        else:
            x = norm("norm3")
        return h + drop(mlp(x, self)), seen

    def _dense(self, times: int, name: str) -> nn.Module:
        return Linear(
            times * self.width,
            dtype=self.dtype,
            name=name,
            kernel_init=nn.initializers.normal(self.init_std),
        )


class Autoregressive(nn.Module):
    """p(z_l | z_<l, condition) as unnormalised log-probabilities of the k codes; fields as in
    `models.denoiser.Denoiser`.
    """

    codes: int
    grid: tuple[int, int]
    layers: int = 19
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    condition: str = "text"
    classes: int = 0
    head: str = "linear"
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self,
        before: Int[Array, "b q"],
        condition: Condition,
        mask: Bool[Array, "b m"],
        place: Place = 0,
        past: Past | None = None,
        deterministic: bool = True,
    ) -> tuple[Logits, Past]:
        """Logits of the tokens at q places from `place` on, and what is to be given as `past` for
        the places after them.

        `before` are the tokens one place earlier; before the first stands k. Without `past` the q
        places see each other only; with it (room for the whole grid, of which the places before
        `place` are filled) all of those too: those calls neither remat nor scan, which would copy
        it.
        """
        if self.width % self.heads:
            raise UserError(
                f"denoiser.width {self.width} must be a multiple of denoiser.heads {self.heads}"
            )
        embed = lambda size, name: nn.Embed(
            size, self.width, embedding_init=nn.initializers.normal(self.init_std), name=name
        )
        h, w = self.grid
        here = place + jnp.arange(before.shape[1])
        tokens = embed(self.codes + 1, "tokens")
        x = (
            tokens(before) + (embed(h, "rows")(here // w) + embed(w, "columns")(here % w))[None]
        ).astype(self.dtype)
        condition = condition.astype(self.dtype) if self.condition == "text" else condition
        block = functools.partial(
            CausalBlock,
            width=self.width,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            condition=self.condition,
            classes=self.classes,
            init_std=self.init_std,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        if past is None:
            x, seen = apply_layers(
                self,
                block,
                lambda block, x: block(x, condition, mask, place, None, deterministic),
                x,
            )
        else:
            seen = {}
            for name in (f"block{i}" for i in range(self.layers)):
                x, seen[name] = block(name=name)(
                    x, condition, mask, place, past[name], deterministic
                )
        return logits_of(x, tokens, self, self.codes), seen

    def room(self, past: Past) -> Past:
        """`past` of the first places with room for the whole grid."""
        n = math.prod(self.grid)
        grow = lambda layer: (
            layer
            | {
                "self": jnp.pad(
                    layer["self"], ((0, 0), (0, 0), (0, n - layer["self"].shape[2]), (0, 0))
                )
            }
        )
        return {name: grow(layer) for name, layer in past.items()}
