"""Multi-head attention with biases on every projection, as the denoiser's blocks use it.

Queries, keys and values of self-attention come from one fused product; softmax is float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from vqd_jax.models.linear import Linear

CACHED = 2**18  # weights at a time in `attend_in_parts`; 2**17 and 2**20 are no better on two cores
MANY = 2**21    # weights; with fewer the parts cost more than they save


def attend(q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int,
           mask: Bool[Array, "#b #q m"] | None = None) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(f)) v over `heads` heads; keys where `mask` is False get no weight."""
    out = _mix(attention_weights(q, k, heads, mask).astype(v.dtype), _split(v, heads))
    return out.reshape(*out.shape[:2], -1)


def attention_weights(q: Float[Array, "b q d"], k: Float[Array, "b m d"], heads: int,
                      mask: Bool[Array, "#b #q m"] | None = None) -> Float[Array, "b heads q m"]:
    """softmax(q k^T / sqrt(f)): how much each query looks at each key; keys where `mask` is False get no weight."""
    q, k = _split(q, heads), _split(k, heads)
    logits = _compare(q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, -1e9)
    return jax.nn.softmax(logits)


def _split(x: Float[Array, "b n d"], heads: int) -> Float[Array, "b n heads f"]:
    return x.reshape(*x.shape[:2], heads, -1)


@jax.custom_vjp
def _compare(q: Float[Array, "b q a f"], k: Float[Array, "b m a f"]) -> Float[Array, "b a q m"]:
    return jnp.einsum("bqaf,bmaf->baqm", q, k)


@jax.custom_vjp
def _mix(w: Float[Array, "b a q m"], v: Float[Array, "b m a f"]) -> Float[Array, "b q a f"]:
    return jnp.einsum("baqm,bmaf->bqaf", w, v)


def _by_keys(x: Float[Array, "b q a f"], w: Float[Array, "b a q m"]) -> Float[Array, "b m a f"]:
    """Sums over queries. Autodiff would have the transposed weights as the left factor, at a fifth of the pace on XLA's CPU backend."""
    return jnp.einsum("bqaf,baqm->bafm", x, w).transpose(0, 3, 1, 2)


_compare.defvjp(lambda q, k: (_compare(q, k), (q, k)),
                lambda saved, g: (_mix(g, saved[1]), _by_keys(saved[0], g)))
_mix.defvjp(lambda w, v: (_mix(w, v), (w, v)),
            lambda saved, g: (_compare(g, saved[1]), _by_keys(g, saved[0])))


def attend_in_parts(q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int) -> Float[Array, "b q d"]:
    """`attend` for a CPU: as many heads at a time as its cache has room for, with weights that the backward pass computes again.

    Of the (b, heads, q, m) weights only the logs of their sums are kept (Dao et al. 2022, arXiv:2205.14135).
    """
    return _attend(q * (q.shape[-1] // heads) ** -0.5, k, v, heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q, k, v, heads):
    return _forward(q, k, v, heads)[0]


def _forward(q, k, v, heads):
    def some(q, k, v):
        log_w = _scores(q, k)
        top = log_w.max(-1, keepdims=True)
        w = jnp.exp(log_w - top)
        total = w.sum(-1, keepdims=True)
        return (jnp.einsum("cqm,cmf->cqf", w.astype(v.dtype), v) / total).astype(v.dtype), top + jnp.log(total)

    saved = tuple(_parts(x, heads, q.shape[1] * k.shape[1]) for x in (q, k, v))
    out, log_total = jax.lax.map(lambda part: some(*part), saved)
    return _whole(out, heads), (*saved, out, log_total)


def _backward(heads, saved, g):
    def some(q, k, v, log_total, g, own):
        w = jnp.exp(_scores(q, k) - log_total)
        change = (w * (jnp.einsum("cqf,cmf->cqm", g, v) - own)).astype(q.dtype)
        return (jnp.einsum("cqm,cmf->cqf", change, k), jnp.einsum("cqf,cqm->cfm", q, change),
                jnp.einsum("cqf,cqm->cfm", g, w.astype(g.dtype)))

    *saved, out, log_total = saved
    g = _parts(g, heads, out.shape[2] * saved[1].shape[2])
    own = (out * g).astype(jnp.float32).sum(-1, keepdims=True)
    dq, dk, dv = jax.lax.map(lambda part: some(*part), (*saved, log_total, g, own))
    return tuple(_whole(x, heads) for x in (dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3)))


def _scores(q, k):
    return jnp.einsum("cqf,cmf->cqm", q, k).astype(jnp.float32)


def _parts(x: Float[Array, "b n d"], heads: int, weights: int) -> Float[Array, "p c n f"]:
    """All heads of all rows, c at a time, where each has so many weights."""
    b, n, d = x.shape
    c = max(c for c in range(1, b * heads + 1) if b * heads % c == 0 and c * weights <= max(CACHED, weights))
    return x.reshape(b, n, heads, d // heads).swapaxes(1, 2).reshape(b * heads // c, c, n, d // heads)


def _whole(x: Float[Array, "p c n f"], heads: int) -> Float[Array, "b n d"]:
    p, c, n, f = x.shape
    return x.reshape(p * c // heads, heads, n, f).swapaxes(1, 2).reshape(p * c // heads, n, heads * f)


_attend.defvjp(_forward, _backward)


class SelfAttention(nn.Module):
    """Every position attends to every position; with `parts`, where there are many weights, by `attend_in_parts`."""

    width: int
    heads: int
    parts: bool = False
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(features, dtype=self.dtype, name=name,
                                                kernel_init=nn.initializers.normal(self.init_std))
        q, k, v = jnp.split(dense(3 * self.width, "qkv")(x), 3, axis=-1)
        parts = self.parts and q.shape[0] * self.heads * q.shape[1] ** 2 > MANY
        return dense(self.width, "out")((attend_in_parts if parts else attend)(q, k, v, self.heads))


class CrossAttention(nn.Module):
    """Image positions attend to the text states; where "intermediates" are asked for, `attention_weights` are among them."""

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
        q = dense(self.width, "q")(x)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention_weights(q, k, self.heads, text_mask[:, None]))
        return dense(self.width, "out")(attend(q, k, v, self.heads, text_mask[:, None]))
