"""The autoregressive baseline (VQ-AR in Gu et al. 2022): tokens in raster order, each from those
before it; of several groups of codes all tokens of one before those of the next.

Each layer is h += SA(LN(h)); h += CA(LN(h), text); h += MLP(LN(h)) with causal self-attention.
Sampling caches keys and values, so that a call computes one token.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vqd_jax.core.shapes import Logits
from vqd_jax.models.attention import attend
from vqd_jax.models.dropout import Dropout
from vqd_jax.models.transformer import Aux, Condition, TokenTransformer, TransformerBlock

Position = int | Int[Array, ""]
# By layer: "self", keys and values (2, b, n, d), and, with text, "text" (2, b, m, d).
Cache = Mapping[str, Aux]
ACCEPTED = {"head": ("linear", "tied"), "condition": ("text", "class", "none")}


class CausalBlock(TransformerBlock):
    """One layer of the network; `width` is d."""

    width: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b q d"],
        condition: Condition,
        mask: Bool[Array, "b m"],
        first: Position,
        cache: Aux | None,
        dropout_rows: Int[Array, " b"] | None,
    ) -> tuple[Float[Array, "b q d"], Aux]:
        """The layer's output and its keys and values, of all positions in the cache if there is
        one.
        """
        d = self.width
        dropout = Dropout(self.dropout)
        drop = lambda x: dropout(x, dropout_rows)
        q, *kv = jnp.split(self.dense(3 * d, "self_qkv")(self.norm(h, "norm1")), 3, axis=-1)
        new = {"self": jnp.stack(kv)}
        if cache:
            new["self"] = jax.lax.dynamic_update_slice_in_dim(
                cache["self"], new["self"], first, axis=2
            )
        visible = jnp.arange(new["self"].shape[2])[None] <= first + jnp.arange(h.shape[1])[:, None]
        keys, values = new["self"]
        attended = attend(q, keys, values, self.heads, visible[None])
        h = h + drop(self.dense(d, "self_out")(attended))
        if self.condition == "text":
            if cache:
                new["text"] = cache["text"]
            else:
                kv = self.dense(2 * d, "cross_kv")(condition)
                new["text"] = jnp.stack(jnp.split(kv, 2, axis=-1))
            q = self.dense(d, "cross_q")(self.norm(h, "norm2"))
            keys, values = new["text"]
            attended = attend(q, keys, values, self.heads, mask[:, None])
            h = h + drop(self.dense(d, "cross_out")(attended))
        return h + drop(self.linear_mlp(self.mlp_norm(h, condition))), new


class Autoregressive(TokenTransformer):
    """p(z_l | z_<l, condition) as unnormalised log-probabilities of the k codes."""

    @nn.compact
    def __call__(
        self,
        previous: Int[Array, "b q"],
        condition: Condition,
        mask: Bool[Array, "b m"],
        first: Position = 0,
        cache: Cache | None = None,
        dropout_rows: Int[Array, " b"] | None = None,
    ) -> tuple[Logits, Cache]:
        """Logits of the q tokens from `first` on, and the cache for those after them.

        `previous` has the token before each of these; k stands before the first. Without a cache
        the q tokens attend to each other only. With one (for all tokens of an image, filled before
        `first`, as by `pad_cache`) they also attend to those before them; such calls ignore `remat`
        and `scan`, which would copy the cache.
        """
        self.check(ACCEPTED)
        index = first + jnp.arange(previous.shape[1])
        place = self.embed_positions(index % math.prod(self.grid), self.grid)
        if self.groups > 1:
            place = place + self.embedding(self.groups, "groups")(self.group(index))
        x, tables = self.embed_tokens(previous, jnp.maximum(index - 1, 0))
        x = (x + place[None]).astype(self.dtype)
        condition = condition.astype(self.dtype) if self.condition == "text" else condition
        block = self.block(CausalBlock)
        if cache is None:
            call = lambda block, x, _: block(x, condition, mask, first, None, dropout_rows)
            x, new = self.run_layers(block, call, x)
        else:
            new = {}
            for i in range(self.layers):
                name = f"block{i}"
                x, new[name] = block(name=name)(
                    x, condition, mask, first, cache[name], dropout_rows
                )
        logits = self.logits(x, tables)
        if self.groups > 1:
            logits = rearrange(logits, "b q (g k) -> b q g k", g=self.groups)
            group = self.group(index)[None, :, None, None]
            logits = jnp.take_along_axis(logits, group, axis=2)[:, :, 0]
        return logits, new

    def pad_cache(self, cache: Cache) -> Cache:
        """A cache of the first tokens, padded to all tokens of an image."""

        def pad(layer: Aux) -> Aux:
            missing = self.tokens - layer["self"].shape[2]
            return layer | {"self": jnp.pad(layer["self"], ((0, 0), (0, 0), (0, missing), (0, 0)))}

        return {name: pad(layer) for name, layer in cache.items()}
