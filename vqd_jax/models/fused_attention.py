"""Attention by the kernels that accelerators have for it. None of them writes the (b, heads, n, m)
weights to memory.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.core.shapes import AttentionMask

Split = Float[Array, "b n heads f"]
Heads = Float[Array, "b heads n f"]

# cuDNN 9 refuses gradients for numbers of keys that this does not divide, such as the 77 of CLIP.
CUDNN_KEYS = 8
SPLASH_BLOCK = 128  # Splash needs a multiple of it as the number of tokens
SPLASH_BLOCKS = 512  # queries and keys that a step of the kernel has in fast memory, at most
HEADS_AXIS = "tensor"  # of a mesh; heads are sharded over it, and rows over all other axes


def cudnn_attention(
    q: Split,
    k: Float[Array, "b m heads f"],
    v: Float[Array, "b m heads f"],
    mask: AttentionMask | None,
) -> Split:
    """softmax(q k^T / sqrt(f)) v by cuDNN's kernels for half precision; keys where `mask` is False
    get no weight.
    """
    keys = k.shape[1]
    if padding := -keys % CUDNN_KEYS:
        k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (k, v))
        mask = jnp.ones((1, 1, keys), bool) if mask is None else mask
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, padding)))
    if mask is not None:  # cuDNN takes no mask of fewer queries
        mask = jnp.broadcast_to(mask, (mask.shape[0], q.shape[1], mask.shape[2]))[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def cudnn_takes(features: int, dtype: DTypeLike) -> bool:
    """Whether cuDNN has kernels for heads of that many features."""
    return features % 8 == 0 and features <= 128 and jnp.dtype(dtype).itemsize == 2


def splash_takes(q: Heads) -> bool:
    """Whether the Splash kernel takes self-attention of this shape."""
    return q.shape[2] % SPLASH_BLOCK == 0 and q.shape[3] % 64 == 0


@jax.custom_vjp
def tpu_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q k^T) v on a TPU: the Splash kernel where there are gradients. Without, it is the
    plain form, of which the compiler makes a kernel by itself.
    """
    return plain_attention(q, k, v)


def _forward(q, k, v):
    return jax.vjp(splash_attention, q, k, v)


tpu_attention.defvjp(_forward, lambda backward, g: backward(g))


def plain_attention(q, k, v, mask=None):
    """softmax(q k^T) v, differentiated by JAX."""
    scores = jnp.einsum("bhqf,bhkf->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(masked(scores, mask)).astype(v.dtype)
    return jnp.einsum("bhqk,bhkf->bhqf", weights, v)


def masked(
    scores: Float[Array, "b heads q m"], mask: AttentionMask | None
) -> Float[Array, "b heads q m"]:
    """The scores, which give no weight to keys where `mask` is False."""
    return scores if mask is None else jnp.where(mask[:, None], scores, -1e9)


def splash_attention(q: Heads, k: Heads, v: Heads, interpret: bool = False) -> Heads:
    """softmax(q k^T) v by the Splash kernel of Pallas. On a mesh each device computes its rows and
    heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def kernel(q: Heads, k: Heads, v: Heads) -> Heads:
        _, heads, n, _ = q.shape
        size = max(b for b in range(SPLASH_BLOCK, SPLASH_BLOCKS + 1, SPLASH_BLOCK) if n % b == 0)
        names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
        one = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([splash.FullMask((n, n))] * heads),
            block_sizes=splash.BlockSizes(**{f"block_{name}": size for name in names}),
            interpret=interpret,
        )
        return jax.vmap(one)(q, k, v)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:
        return kernel(q, k, v)
    size = lambda axes: math.prod(mesh.shape[axis] for axis in axes)
    heads = tuple(axis for axis in mesh.auto_axes if axis == HEADS_AXIS)
    rows = tuple(axis for axis in mesh.auto_axes if axis != HEADS_AXIS)
    axes = [axes if n % size(axes) == 0 else None for n, axes in zip(q.shape, (rows, heads))]
    spec = PartitionSpec(*axes)
    sharded = jax.shard_map(kernel, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return sharded(q, k, v)
