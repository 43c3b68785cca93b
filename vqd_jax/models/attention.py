"""Multi-head attention with biases on every projection, as the denoiser's blocks use it.

Queries, keys and values of self-attention come from one fused product; softmax is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from vqd_jax.models.linear import Linear

CACHED = 2**18  # weights at a time in `attend_chunked`; 2**17 and 2**20 are no better on two cores
ALONE = (
    2**25 if jax.__version_info__ >= (0, 12) else CACHED
)  # the same without gradients: such a jax fuses the softmax into the products
MANY = 2**23  # weights; with fewer the parts cost more than they save


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    heads: int,
    mask: Bool[Array, "#b #q m"] | None = None,
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(f)) v over `heads` heads; keys where `mask` is False get no weight."""
    return _join(_attend(*_heads(q, k, v, heads), mask))


def attention_weights(
    q: Float[Array, "b q d"],
    k: Float[Array, "b m d"],
    heads: int,
    mask: Bool[Array, "#b #q m"] | None = None,
) -> Float[Array, "b heads q m"]:
    """softmax(q k^T / sqrt(f)): how much each query looks at each key; keys where `mask` is False
    get no weight.
    """
    q, k, _ = _heads(q, k, k, heads)
    return jax.nn.softmax(_masked(_scores(q, k), mask))


def attend_chunked(
    q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int
) -> Float[Array, "b q d"]:
    """`attend` for a CPU: as many heads at a time as its cache has room for, with weights that the
    backward pass computes again.

    Of the (b, heads, q, m) weights only the logs of their sums are kept (Dao et al. 2022,
    arXiv:2205.14135).
    """
    return _join(_attend_in_parts(*_heads(q, k, v, heads)))


def _heads(
    q: Float[Array, "b q d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int
) -> tuple[Array, Array, Array]:
    """All three as (b, heads, n, f), which CPUs multiply faster than (b, n, heads, f); the scale
    goes into the queries.
    """
    q = q * (q.shape[-1] // heads) ** -0.5
    return tuple(x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v))


def _join(x: Float[Array, "b heads n f"]) -> Float[Array, "b n d"]:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@jax.custom_vjp
def _attend(q, k, v, mask):
    return _attend_forward(q, k, v, mask)[0]


def _attend_forward(q, k, v, mask):
    w, total, _ = _weights(_masked(_scores(q, k), mask))
    out, w = _mix(w, total, v), w.astype(v.dtype)
    return out, (q, k, v, w, total, out)


def _attend_backward(saved, g):
    q, k, v, w, total, out = saved
    g = (g / total).astype(
        g.dtype
    )  # the weights are not divided by their sums, which are many times fewer
    dq, dk, dv = _gradients(q, k, v, w, g, _own(out, g))
    return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3), None


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def _attend_in_parts(q, k, v):
    return _parts(q, k, v, ALONE)[0]


def _parts_forward(q, k, v):
    return _parts(q, k, v, CACHED)


def _parts(q, k, v, at_once):
    def some(q, k, v):
        w, total, top = _weights(_scores(q, k))
        return _mix(w, total, v), top + jnp.log(total)

    saved = tuple(_cut(x, q.shape[2] * k.shape[2], at_once) for x in (q, k, v))
    out, log_total = jax.lax.map(lambda part: some(*part), saved)
    return out.reshape(q.shape), (*saved, out, log_total)


def _parts_backward(saved, g):
    def some(q, k, v, log_total, g, own):
        return _gradients(q, k, v, jnp.exp(_scores(q, k) - log_total).astype(v.dtype), g, own)

    (*saved, out, log_total), shape = saved, g.shape
    g = g.reshape(out.shape)
    dq, dk, dv = (
        x.reshape(*shape[:2], *x.shape[2:])
        for x in jax.lax.map(lambda part: some(*part), (*saved, log_total, g, _own(out, g)))
    )
    return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3)


_attend_in_parts.defvjp(_parts_forward, _parts_backward)


def _cut(x: Float[Array, "b heads n f"], weights: int, at_once: int) -> Float[Array, "p c n f"]:
    """All heads of all rows, c at a time, where each has so many weights."""
    rows = x.shape[0] * x.shape[1]
    c = max(c for c in range(1, rows + 1) if rows % c == 0 and c * weights <= max(at_once, weights))
    return x.reshape(rows // c, c, *x.shape[2:])


def _scores(q, k):
    return (q @ k.swapaxes(-1, -2)).astype(jnp.float32)


def _masked(scores, mask):
    return scores if mask is None else jnp.where(mask[:, None], scores, -1e9)


def _weights(scores):
    """Weights whose largest is 1, their sums, and by what they were shifted."""
    top = scores.max(-1, keepdims=True)
    w = jnp.exp(scores - top)
    return w, w.sum(-1, keepdims=True), top


def _mix(w, total, v):
    return (w.astype(v.dtype) @ v / total).astype(v.dtype)


def _own(out, g):
    return (out * g).astype(jnp.float32).sum(-1, keepdims=True)


def _gradients(q, k, v, w, g, own):
    """Of the queries, and transposed of the keys and values; `own` is the share of each query's
    output in its gradient g.

    With the transposed weights as the left factor the sums over queries would run at a fifth of the
    pace on XLA's CPU backend.
    """
    change = (w * (_scores(g, v) - own)).astype(q.dtype)
    over_queries = lambda x, w: jnp.einsum("...qf,...qm->...fm", x, w)
    return change @ k, over_queries(q, change), over_queries(g, w)


class SelfAttention(nn.Module):
    """Every position attends to every position; with `parts`, where there are many weights, by
    `attend_chunked`.
    """

    width: int
    heads: int
    parts: bool = False
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(
            features, dtype=self.dtype, name=name, kernel_init=nn.initializers.normal(self.init_std)
        )
        q, k, v = jnp.split(dense(3 * self.width, "qkv")(x), 3, axis=-1)
        parts = self.parts and q.shape[0] * self.heads * q.shape[1] ** 2 > MANY
        return dense(self.width, "out")((attend_chunked if parts else attend)(q, k, v, self.heads))


class CrossAttention(nn.Module):
    """Image positions attend to the text states; where "intermediates" are asked for,
    `attention_weights` are among them.
    """

    width: int
    heads: int
    init_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], text: Float[Array, "b m e"], text_mask: Bool[Array, "b m"]
    ) -> Float[Array, "b n d"]:
        dense = lambda features, name: Linear(
            features, dtype=self.dtype, name=name, kernel_init=nn.initializers.normal(self.init_std)
        )
        k, v = jnp.split(dense(2 * self.width, "kv")(text), 2, axis=-1)
        q = dense(self.width, "q")(x)
        if self.is_mutable_collection("intermediates"):
            self.sow(
                "intermediates",
                "attention",
                attention_weights(q, k, self.heads, text_mask[:, None]),
            )
        return dense(self.width, "out")(attend(q, k, v, self.heads, text_mask[:, None]))
