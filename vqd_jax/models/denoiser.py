"""The denoising transformer of VQ-Diffusion: image tokens and a time in, logits of the clean tokens
out.

Each layer is h += SA(AdaLN(h, t)); h += CA(AdaLN(h, t), text); h += MLP(LN(h)) (Gu et al. 2022,
section 4.2). Class models have no CA, and their second norm is an AdaLN on the class; unconditional
ones have neither.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, TextStates, Times, Tokens
from vqd_jax.models.attention import CrossAttention, SelfAttention
from vqd_jax.models.linear import Linear, product

Condition = TextStates | Int[Array, " b"]


def gelu2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), the sigmoid form of GELU that the released models use."""
    return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """Normalises the last axis in float32, without gain or bias; epsilon 1e-5."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - x32.mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)


class AdaLayerNorm(nn.Module):
    """LN(h) * (1 + scale) + shift, with (scale, shift) a linear map of SiLU(E[i]); every one has
    its own table E of `size` rows.

    An index beyond the table stands for the mean of its rows. With kind "sinusoidal" E is fixed.
    """

    size: int
    kind: str = "learned"
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"], i: Int[Array, " b"]) -> Float[Array, "b n d"]:
        d, normal = h.shape[-1], nn.initializers.normal(self.init_std)
        if self.kind == "learned":
            table = nn.Embed(self.size, d, embedding_init=normal, name="table")
            e = table(jnp.minimum(i, self.size - 1))
            e = jnp.where((i < self.size)[:, None], e, table.embedding.mean(0)[None])
        else:
            e = sinusoid(i, self.size, d)
        change = Linear(2 * d, dtype=self.dtype, kernel_init=normal, name="linear")(jax.nn.silu(e))
        scale, shift = jnp.split(change[:, None, :], 2, axis=-1)
        return layer_norm(h) * (1 + scale) + shift


def sinusoid(i: Int[Array, " b"], size: int, d: int) -> Float[Array, "b d"]:
    """[sin, cos] of 4000 i / size at d / 2 frequencies from 1 down to 1e-4."""
    z = i.astype(jnp.float32)[:, None] * (4000 / size)
    f = jnp.exp(-jnp.arange(d // 2) * (jnp.log(10_000.0) / (d // 2 - 1)))[None, :]
    return jnp.concatenate([jnp.sin(z * f), jnp.cos(z * f)], axis=-1)


class Block(nn.Module):
    """One layer of the denoiser; its fields are the denoiser's."""

    grid: tuple[int, int]
    T: int
    heads: int
    mlp_ratio: int
    mlp: str
    time: str
    condition: str
    classes: int
    attention: str
    init_std: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b n d"],
        t: Times,
        condition: Condition,
        mask: Bool[Array, "b m"],
        deterministic: bool,
    ) -> Float[Array, "b n d"]:
        d = h.shape[-1]
        shared = dict(init_std=self.init_std, dtype=self.dtype)
        norm = lambda name: AdaLayerNorm(size=self.T, kind=self.time, name=name, **shared)(h, t - 1)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        h = h + drop(
            SelfAttention(
                d, self.heads, self.attention == "parts", name="self_attention", **shared
            )(norm("norm1"))
        )
        if self.condition == "text":
            h = h + drop(
                CrossAttention(d, self.heads, name="cross_attention", **shared)(
                    norm("norm2"), condition, mask
                )
            )
        if self.condition == "class":
            x = AdaLayerNorm(size=self.classes, name="norm3", **shared)(h, condition)
        else:
            x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm3")(h)
        return h + drop(self._conv_mlp(x) if self.mlp == "conv" else mlp(x, self))

    def _conv_mlp(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        conv = lambda features, name, fan_in: nn.Conv(
            features,
            (3, 3),
            dtype=self.dtype,
            name=name,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=_uniform(fan_in**-0.5),
        )
        x = conv(self.mlp_ratio * d, "mlp_in", 9 * d)(x.reshape(b, *self.grid, d))
        return conv(d, "mlp_out", 9 * self.mlp_ratio * d)(gelu2(x)).reshape(b, n, d)


def mlp(x: Float[Array, "b n d"], of: Any) -> Float[Array, "b n d"]:
    """Two linear layers, which become part of the block `of` that calls this."""
    dense = lambda features, name: Linear(
        features, dtype=of.dtype, name=name, kernel_init=nn.initializers.normal(of.init_std)
    )
    d = x.shape[-1]
    return dense(d, "mlp_out")(gelu2(dense(of.mlp_ratio * d, "mlp_in")(x)))


def logits_of(x: Float[Array, "b n d"], tokens: nn.Embed, of: Any, outputs: int) -> Logits:
    """The final norm and the head, which become part of the network `of` that calls this; `tokens`
    is its embedding, of which the first `outputs` have a logit.
    """
    x = nn.LayerNorm(epsilon=1e-5, dtype=of.dtype, name="norm")(x)
    if of.head == "tied":
        kernel = tokens.embedding[:outputs].T.astype(of.dtype)
        bias = of.param("head_bias", nn.initializers.zeros, (outputs,))
        return product(x, kernel).astype(jnp.float32) + bias[None, None]
    return Linear(
        outputs, dtype=of.dtype, kernel_init=nn.initializers.normal(of.init_std), name="head"
    )(x).astype(jnp.float32)


def apply_layers(
    of: Any, block: Callable[..., nn.Module], call: Callable, x: Float[Array, "b n d"]
) -> tuple[Any, dict[str, Any]]:
    """x after all layers of the network `of`, whose fields `layers`, `remat` and `scan` say how,
    and by name what each layer tells.

    `block(**fields)` makes a layer, `call(layer, x) -> (x, what it tells)` uses it.
    """
    names, call = (
        [f"block{i}" for i in range(of.layers)],
        nn.remat(call) if of.remat and not of.scan else call,
    )
    told = {}
    if not of.scan or of.is_initializing():
        for name in names:
            x, told[name] = call(block(name=name), x)
        return x, told
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x), *(of.variables["params"][name] for name in names)
    )
    keys = jax.random.split(of.make_rng("dropout"), of.layers) if of.has_rng("dropout") else None
    layer = block(parent=None)

    def one(x, part):
        params, key = part
        return call(
            functools.partial(
                layer.apply, {"params": params}, rngs={} if key is None else {"dropout": key}
            ),
            x,
        )

    x, told = jax.lax.scan(jax.checkpoint(one) if of.remat else one, x, (stacked, keys))
    return x, {name: jax.tree.map(lambda y, i=i: y[i], told) for i, name in enumerate(names)}


def _uniform(limit: float) -> nn.initializers.Initializer:
    """Uniform in (-limit, limit)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -limit, limit
    )


class Denoiser(nn.Module):
    """p(x_0 | x_t, t, condition) as unnormalised log-probabilities of the k codes.

    Attributes:
      codes: k; the input vocabulary is k + 1, with [MASK] last.
      grid: (h, w) of the token grid; position l is row l // w, column l % w.
      T: diffusion steps; times fed in are 1..T.
      condition: "text" (cross-attention to states (b, m, e) where the mask is True), "class"
        (labels (b,); one beyond `classes` stands for the mean of all) or "none".
      mlp: "fc", two linear layers, or "conv", two 3x3 convolutions over the grid.
      positions: sizes of the position tables, if not the grid's own: position l is then row l // w
        and column l % w of those, as in the released ImageNet and FFHQ models, which read 16x16
        grids through 32x32 tables.
      time: "learned" (a table for each AdaLN) or "sinusoidal".
      head: "linear", as published, or "tied": the token embedding read backwards, so that a network
        at its start already tends to copy the tokens that are not [MASK].
      predict: what the logits are of: "x0", or the "previous" state z_{t-1}, with one more for
      [MASK] (`diffusion.previous`).
      attention: "whole", or "parts": a few heads at a time, for the cache of a CPU, whose weights
      the backward pass computes again.
      dtype: of the matrix products; parameters, norms, softmax and logits are float32.
      remat: compute each layer again in the backward pass, instead of keeping what it computed.
      scan: one program for all layers, with their parameters stacked when it runs: it compiles
      faster.
    """

    codes: int
    grid: tuple[int, int]
    T: int
    layers: int = 19
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    mlp: str = "fc"
    condition: str = "text"
    classes: int = 0
    positions: tuple[int, int] | tuple[()] = ()
    time: str = "learned"
    head: str = "linear"
    predict: str = "x0"
    init_std: float = 0.02
    dropout: float = 0.0
    attention: str = "whole"
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self,
        z_t: Tokens,
        t: Times,
        condition: Condition,
        mask: Bool[Array, "b m"],
        deterministic: bool = True,
    ) -> Logits:
        self._check()
        normal = nn.initializers.normal(self.init_std)
        embed = lambda size, name: nn.Embed(size, self.width, embedding_init=normal, name=name)
        n, (h, w) = math.prod(self.grid), self.positions or self.grid
        place = jnp.arange(n)
        position = embed(h, "rows")(place // w) + embed(w, "columns")(place % w)
        tokens = embed(self.codes + 1, "tokens")
        x = (tokens(z_t) + position[None]).astype(self.dtype)
        condition = condition.astype(self.dtype) if self.condition == "text" else condition
        block = functools.partial(
            Block,
            grid=self.grid,
            T=self.T,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            mlp=self.mlp,
            time=self.time,
            condition=self.condition,
            classes=self.classes,
            attention=self.attention,
            init_std=self.init_std,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        x, _ = apply_layers(
            self, block, lambda block, x: (block(x, t, condition, mask, deterministic), {}), x
        )
        return logits_of(x, tokens, self, self.codes + (self.predict == "previous"))

    def _check(self) -> None:
        for field, accepted in (
            ("time", ("learned", "sinusoidal")),
            ("head", ("linear", "tied")),
            ("mlp", ("fc", "conv")),
            ("predict", ("x0", "previous")),
            ("condition", ("text", "class", "none")),
            ("attention", ("whole", "parts")),
        ):
            if (value := getattr(self, field)) not in accepted:
                raise UserError(
                    f"denoiser.{field} must be {', '.join(accepted[:-1])} or {accepted[-1]}, got "
                    f"{value!r}"
                )
        if self.width % self.heads:
            raise UserError(
                f"denoiser.width {self.width} must be a multiple of denoiser.heads {self.heads}"
            )
        if self.positions and math.prod(self.positions) < math.prod(self.grid):
            raise UserError(
                f"denoiser.positions {self.positions} are too few for a grid of {self.grid}"
            )
        if self.condition == "class" and self.classes < 1:
            raise UserError("a denoiser with the condition class needs the number of classes")
