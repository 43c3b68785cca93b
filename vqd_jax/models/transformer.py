"""The transformer over image tokens that the denoiser and the autoregressive baseline share:
embeddings, layers and head, and the adaptive norm of their blocks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, DTypeLike, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import TextStates, Tokens
from vqd_jax.models.linear import Linear, linear

# Their results need little memory beside what they cost.
KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper")


def _is_product(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Whether it is a product of a linear layer, or a kernel of attention."""
    linear = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name in KERNELS or linear(primitive, *arguments, **parameters)


# What is stored for the backward pass, by `TokenTransformer.remat`
POLICIES: dict[str, Callable[..., bool] | None] = {"products": _is_product, "full": None}

Condition = TextStates | Int[Array, " b"]
Aux = dict[str, Array]
Index = Int[Array, " n"] | Int[np.ndarray, " n"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), the approximation of GELU in CLIP and in the released models."""
    return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """Normalises the last axis, without gain or bias; epsilon 1e-5. The result is float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def sinusoid(i: Int[Array, " b"], size: int, d: int) -> Float[Array, "b d"]:
    """[sin, cos] of 4000 i / size at d / 2 frequencies from 1 down to 1e-4."""
    z = i.astype(jnp.float32)[:, None] * (4000 / size)
    f = jnp.exp(-jnp.arange(d // 2) * (jnp.log(10_000.0) / (d // 2 - 1)))[None, :]
    return jnp.concatenate([jnp.sin(z * f), jnp.cos(z * f)], axis=-1)


class AdaLayerNorm(nn.Module):
    """LN(h) * (1 + scale) + shift, with (scale, shift) a linear map of SiLU(E[i]).

    Every instance has its own table E of `size` rows, learned or, with kind "sinusoidal", fixed.
    An index beyond a learned table selects the mean of its rows.
    """

    size: int
    init_std: float
    dtype: DTypeLike
    kind: str = "learned"

    def __call__(
        self,
        h: Float[Array, "b n d"],
        i: Int[Array, " b"],
        changes: Float[Array, "size _"] | None = None,
    ) -> Float[Array, "b n d"]:
        """`changes`, if they are there, are those of all indices, from `changes`."""
        change = self.changes(i, h.shape[-1]) if changes is None else changes[i]
        scale, shift = jnp.split(change[:, None, :], 2, axis=-1)
        return (layer_norm(h) * (1 + scale) + shift).astype(h.dtype)

    @nn.compact
    def changes(self, i: Int[Array, " b"], d: int) -> Float[Array, "b _"]:
        """Scales and shifts for the indices."""
        normal = nn.initializers.normal(self.init_std)
        if self.kind == "learned":
            table = nn.Embed(self.size, d, embedding_init=normal, name="table")
            e = table(jnp.minimum(i, self.size - 1))
            e = jnp.where((i < self.size)[:, None], e, table.embedding.mean(0)[None])
        else:
            e = sinusoid(i, self.size, d)
        linear = Linear(2 * d, self.dtype, jnp.float32, kernel_init=normal, name="linear")
        return linear(jax.nn.silu(e))


class TransformerBlock(nn.Module):
    """The fields and parts that the blocks of both networks share; fields as in
    `TokenTransformer`.
    """

    heads: int
    mlp_ratio: int
    condition: str
    classes: int
    init_std: float
    dropout: float
    dtype: DTypeLike

    def dense(self, features: int, name: str) -> nn.Module:
        normal = nn.initializers.normal(self.init_std)
        return Linear(features, dtype=self.dtype, name=name, kernel_init=normal)

    def norm(self, h: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(h)

    def mlp_norm(self, h: Float[Array, "b n d"], condition: Condition) -> Float[Array, "b n d"]:
        """The norm before the MLP, which class models adapt to the class."""
        if self.condition != "class":
            return self.norm(h, "norm3")
        adaptive = AdaLayerNorm(self.classes, self.init_std, self.dtype, name="norm3")
        return adaptive(h, condition)

    def linear_mlp(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        return self.dense(d, "mlp_out")(quick_gelu(self.dense(self.mlp_ratio * d, "mlp_in")(x)))


class TokenTransformer(nn.Module):
    """Fields and parts that the networks over image tokens share.

    Attributes:
      codes: k; the input vocabulary is k + 1, with [MASK] last.
      groups: g, the number of tokens at each position. Each group has its own k codes and [MASK].
      grid: (h, w) of the token grid; position l is row l // w, column l % w. Tokens are ordered by
        group, then by position.
      condition: "text" (cross-attention to states (b, m, e) where the mask is True), "class"
        (labels (b,); one beyond `classes` stands for the mean of all) or "none".
      head: "linear", as published, or "tied": logits are products with the token embedding, so that
        an untrained network already tends to copy the tokens that are not [MASK].
      dtype: of the matrix products; parameters, norms, softmax and logits are float32.
      remat: what a layer computes again in the backward pass instead of storing it: "none", "full"
        (everything) or "products" (all but its linear layers and attention kernels).
      scan: one program for all layers, whose parameters are stacked at run time: compiles faster.
    """

    codes: int
    grid: tuple[int, int]
    layers: int
    width: int
    heads: int
    mlp_ratio: int
    groups: int = 1
    condition: str = "text"
    classes: int = 0
    head: str = "linear"
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    scan: bool = False

    def check(self, accepted: dict[str, tuple[str, ...]]) -> None:
        """UserError for a field that has none of its accepted values, or sizes that do not fit."""
        for field, values in (accepted | {"remat": ("none", *POLICIES)}).items():
            if (value := getattr(self, field)) not in values:
                raise UserError(
                    f"denoiser.{field} must be {', '.join(values[:-1])} or {values[-1]}, got "
                    f"{value!r}"
                )
        if self.width % self.heads:
            raise UserError(
                f"denoiser.width {self.width} must be a multiple of denoiser.heads {self.heads}"
            )
        if self.condition == "class" and self.classes < 1:
            raise UserError("a denoiser with the condition class needs the number of classes")

    def block(self, kind: type[TransformerBlock]) -> Callable[..., nn.Module]:
        """Returns the constructor of a block whose fields are those of this network."""
        names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
        return functools.partial(kind, **{name: getattr(self, name) for name in names})

    @property
    def tokens(self) -> int:
        """n, the number of tokens of an image."""
        return self.groups * math.prod(self.grid)

    @property
    def outputs(self) -> int:
        """The number of logits of a position."""
        return self.groups * self.codes

    def group(self, index: Index) -> Index:
        """The group of each token, by its index in the image."""
        return index // math.prod(self.grid)

    def embedding(self, size: int, name: str) -> nn.Embed:
        normal = nn.initializers.normal(self.init_std)
        return nn.Embed(size, self.width, embedding_init=normal, name=name)

    def embed_tokens(self, tokens: Tokens, index: Index) -> tuple[Float[Array, "b n d"], nn.Embed]:
        """Embeddings of the tokens with these indices in the image, by the tables of their groups,
        and the module with these tables, one after the other, for `logits`.
        """
        tables = self.embedding(self.groups * (self.codes + 1), "tokens")
        if self.groups > 1:
            tokens = tokens + (self.codes + 1) * self.group(index)[None]
        return tables(tokens), tables

    def embed_positions(
        self, positions: Int[Array, " l"], table: tuple[int, int]
    ) -> Float[Array, "l d"]:
        """Row plus column embeddings. `table` has the sizes of their tables; position l is row
        l // w of it.
        """
        h, w = table
        rows, columns = self.embedding(h, "rows"), self.embedding(w, "columns")
        return rows(positions // w) + columns(positions % w)

    def run_layers(
        self,
        block: Callable[..., nn.Module],
        call: Callable[[Callable[..., Any], Array, Any], tuple[Array, Aux]],
        x: Float[Array, "b n d"],
        inputs: Mapping[str, Any] | None = None,
        first: int = 0,
    ) -> tuple[Float[Array, "b n d"], dict[str, Aux]]:
        """Runs the layers from `first` on (unrolled, rematerialised or scanned).

        `block(name=name)` makes a layer, `call(layer, x, inputs[name]) -> (x, aux)` applies it; if
        there are no inputs, it gets None. Returns the output of the last layer and each layer's aux
        by the layer's name.
        """
        names = [f"block{i}" for i in range(first, self.layers)]
        given = [inputs[name] for name in names] if inputs else [None] * len(names)
        if self.scan and not self.is_initializing() and names:
            return self._scan_layers(block(parent=None), call, x, names, given)
        if self.remat != "none" and not self.scan:
            call = nn.remat(call, policy=POLICIES[self.remat])
        aux = {}
        for name, own in zip(names, given):
            x, aux[name] = call(block(name=name), x, own)
        return x, aux

    def _scan_layers(
        self,
        layer: nn.Module,
        call: Callable[[Callable[..., Any], Array, Any], tuple[Array, Aux]],
        x: Float[Array, "b n d"],
        names: list[str],
        given: list[Any],
    ) -> tuple[Float[Array, "b n d"], dict[str, Aux]]:
        """`run_layers` by `lax.scan`; checkpoints hold each layer's parameters by name, so
        `nn.scan`, whose parameters are stacked, does not fit.
        """
        params = [self.variables["params"][name] for name in names]
        stack = lambda *leaves: jnp.stack(leaves)
        stacked, inputs = jax.tree.map(stack, *params), jax.tree.map(stack, *given)
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), len(names))

        def step(x, of_layer):
            params, key, own = of_layer
            rngs = {} if key is None else {"dropout": key}
            return call(functools.partial(layer.apply, {"params": params}, rngs=rngs), x, own)

        if self.remat != "none":
            step = jax.checkpoint(step, policy=POLICIES[self.remat])
        x, aux = jax.lax.scan(step, x, (stacked, keys, inputs))
        return x, {name: jax.tree.map(lambda y, i=i: y[i], aux) for i, name in enumerate(names)}

    def logits(self, x: Float[Array, "b l d"], tables: nn.Embed) -> Float[Array, "b l gk"]:
        """Final norm and head: the logits of the codes of each group, one after the other. If the
        head is tied, they are products with the embeddings of `tables`.
        """
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        outputs = self.outputs
        if self.head == "tied":
            bias = self.param("head_bias", nn.initializers.zeros, (outputs,))
            return linear(x, self._without_masks(tables.embedding).T, bias, jnp.float32)
        normal = nn.initializers.normal(self.init_std)
        return Linear(outputs, self.dtype, jnp.float32, kernel_init=normal, name="head")(x)

    def _without_masks(self, tables: Float[Array, "gv d"]) -> Float[Array, "gk d"]:
        """The embeddings of the codes of all groups."""
        if self.groups == 1:
            return tables[: self.codes]
        return rearrange(tables, "(g v) d -> g v d", g=self.groups)[:, :-1].reshape(-1, self.width)
