"""Multi-head attention with biases on every projection, as the denoiser's blocks use it.

One fused product gives the queries, keys and values of self-attention; softmax is float32. The
backward passes for CPUs are written out, since XLA's CPU backend runs the derived ones several
times slower.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, DTypeLike, Float

from vqd_jax.core.shapes import AttentionMask
from vqd_jax.models.fused_attention import (
    cudnn_attention,
    masked,
    plain_attention,
    splash_takes,
    tpu_attention,
)
from vqd_jax.models.linear import Linear

# What `attend` may run: "full" runs everywhere, "chunked" is for CPUs, "cudnn" for NVIDIA GPUs in
# bfloat16, and "splash" for TPUs.
KINDS = ("full", "chunked", "cudnn", "splash")

# Attention weights per chunk of `attend_chunked`; 2**17 and 2**20 are no faster on two cores.
CHUNK = 2**18
# The same without gradients: jax 0.12 fuses the softmax into the products.
CHUNK_FORWARD = 2**25 if jax.__version_info__ >= (0, 12) else CHUNK
# With at most this number of weights, chunks cost more than they save.
CHUNK_ABOVE = 2**23

Heads = Float[Array, "b heads n f"]
Weights = Float[Array, "b heads q m"]


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    heads: int,
    mask: AttentionMask | None = None,
    kind: str = "full",
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(f)) v over `heads` heads; keys where `mask` is False get no weight.

    `kind`, one of KINDS, changes speed and memory only. "chunked" and "splash" have forms of their
    own for self-attention without a mask; see `attend_chunked` and `models.fused_attention`.
    """
    if kind == "cudnn":
        split = lambda x: rearrange(x, "b n (heads f) -> b n heads f", heads=heads)
        out = cudnn_attention(split(q), split(k), split(v), mask)
        return rearrange(out, "b n heads f -> b n (heads f)")
    plain = mask is None and q.shape == k.shape
    if kind == "chunked" and plain and q.shape[0] * heads * q.shape[1] ** 2 > CHUNK_ABOVE:
        return attend_chunked(q, k, v, heads)
    q, k, v = _split(q, k, v, heads)
    if kind == "splash":
        return _join(
            tpu_attention(q, k, v) if plain and splash_takes(q) else plain_attention(q, k, v, mask)
        )
    return _join(_attend(q, k, v, mask))


def attention_weights(
    q: Float[Array, "b q d"],
    k: Float[Array, "b m d"],
    heads: int,
    mask: AttentionMask | None = None,
) -> Weights:
    """softmax(q k^T / sqrt(f)), the weight of each key for each query; keys where `mask` is False
    get none.
    """
    q, k, _ = _split(q, k, k, heads)
    return jax.nn.softmax(masked(_scores(q, k), mask))


def attend_chunked(
    q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int
) -> Float[Array, "b q d"]:
    """`attend` for a CPU: computes a few heads at a time, which fit its cache, and the weights once
    more in the backward pass.

    Of the (b, heads, q, m) weights only the logs of their sums are stored (Dao et al. 2022,
    arXiv:2205.14135).
    """
    return _join(_attend_chunked(*_split(q, k, v, heads)))


def _split(
    q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int
) -> tuple[Float[Array, "b heads q f"], Float[Array, "b heads m f"], Float[Array, "b heads m f"]]:
    """Heads first, which CPUs multiply faster than (b, n, heads, f); scales the queries."""
    q = q * (q.shape[-1] // heads) ** -0.5
    return tuple(rearrange(x, "b n (heads f) -> b heads n f", heads=heads) for x in (q, k, v))


def _join(x: Heads) -> Float[Array, "b n d"]:
    return rearrange(x, "b heads n f -> b n (heads f)")


@jax.custom_vjp
def _attend(q, k, v, mask):
    return _attend_forward(q, k, v, mask)[0]


def _attend_forward(q, k, v, mask):
    w, total, _ = _weights(masked(_scores(q, k), mask))
    out, w = _mix(w, total, v), w.astype(v.dtype)
    return out, (q, k, v, w, total, out)


def _attend_backward(saved, g):
    q, k, v, w, total, out = saved
    # Dividing g by the sums takes fewer operations than dividing the weights.
    g = (g / total).astype(g.dtype)
    dq, dk, dv = _gradients(q, k, v, w, g, _delta(out, g))
    return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3), None


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def _attend_chunked(q, k, v):
    return _chunked(q, k, v, CHUNK_FORWARD)[0]


def _chunked_forward(q, k, v):
    return _chunked(q, k, v, CHUNK)


def _chunked(q, k, v, chunk):
    def one(q, k, v):
        w, total, top = _weights(_scores(q, k))
        return _mix(w, total, v), top + jnp.log(total)

    chunks = tuple(_to_chunks(x, q.shape[2] * k.shape[2], chunk) for x in (q, k, v))
    out, log_total = jax.lax.map(lambda arrays: one(*arrays), chunks)
    return out.reshape(q.shape), (*chunks, out, log_total)


def _chunked_backward(saved, g):
    def one(q, k, v, log_total, g, delta):
        w = jnp.exp(_scores(q, k) - log_total).astype(v.dtype)
        return _gradients(q, k, v, w, g, delta)

    *chunks, out, log_total = saved
    shape = g.shape
    g = g.reshape(out.shape)
    arrays = (*chunks, log_total, g, _delta(out, g))
    gradients = jax.lax.map(lambda arrays: one(*arrays), arrays)
    dq, dk, dv = (x.reshape(*shape[:2], *x.shape[2:]) for x in gradients)
    return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3)


_attend_chunked.defvjp(_chunked_forward, _chunked_backward)


def _to_chunks(x: Heads, weights: int, chunk: int) -> Float[Array, "chunks c n f"]:
    """All heads of all examples, c at a time: as many as have `chunk` weights or fewer, at least
    one; each has `weights`.
    """
    rows = x.shape[0] * x.shape[1]
    c = max(c for c in range(1, rows + 1) if rows % c == 0 and c * weights <= max(chunk, weights))
    return x.reshape(rows // c, c, *x.shape[2:])


def _scores(q, k):
    return (q @ k.swapaxes(-1, -2)).astype(jnp.float32)


def _weights(scores):
    """exp(scores - top), its sums over the keys, and top, the largest score of each query."""
    top = scores.max(-1, keepdims=True)
    w = jnp.exp(scores - top)
    return w, w.sum(-1, keepdims=True), top


def _mix(w, total, v):
    return (w.astype(v.dtype) @ v / total).astype(v.dtype)


def _delta(out, g):
    """Sum over f of out * g: the softmax's gradient subtracts it from g v^T."""
    return (out * g).astype(jnp.float32).sum(-1, keepdims=True)


def _gradients(q, k, v, w, g, delta):
    """Gradients of the queries, and transposed gradients of the keys and values.

    With the transposed weights as the left factor, the sums over queries would run at a fifth of
    the speed on XLA's CPU backend.
    """
    change = (w * (_scores(g, v) - delta)).astype(q.dtype)
    over_queries = lambda x, w: jnp.einsum("...qf,...qm->...fm", x, w)
    return change @ k, over_queries(q, change), over_queries(g, w)


class SelfAttention(nn.Module):
    """Every position attends to every position, by the attention `kind` of KINDS."""

    width: int
    heads: int
    kind: str
    init_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(
            features, dtype=self.dtype, name=name, kernel_init=nn.initializers.normal(self.init_std)
        )
        q, k, v = jnp.split(dense(3 * self.width, "qkv")(x), 3, axis=-1)
        return dense(self.width, "out")(attend(q, k, v, self.heads, kind=self.kind))


class CrossAttention(nn.Module):
    """Image positions attend to the text states, by the attention `kind` of KINDS.

    Sows `attention_weights` as "attention" if the collection "intermediates" is mutable.
    """

    width: int
    heads: int
    kind: str
    init_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        text: Float[Array, "b m e"],
        text_mask: Bool[Array, "b m"],
        kv: Float[Array, "b m _"] | None = None,
    ) -> Float[Array, "b n d"]:
        """`kv`, if it is there, has the keys and values of the text."""
        dense = lambda features, name: Linear(
            features, dtype=self.dtype, name=name, kernel_init=nn.initializers.normal(self.init_std)
        )
        kv = dense(2 * self.width, "kv")(text) if kv is None else kv
        k, v = jnp.split(kv, 2, axis=-1)
        q = dense(self.width, "q")(x)
        mask = text_mask[:, None]
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention_weights(q, k, self.heads, mask))
        return dense(self.width, "out")(attend(q, k, v, self.heads, mask, self.kind))
