"""Matrix products and convolutions, with a form for bfloat16 on CPUs.

XLA's CPU backend gives a bfloat16 product to kernels that use a chip's bfloat16 units (AMX,
AVX-512) only if both operands lie in memory row by row. It makes a transpose part of the product
next to it, which then runs in float32 and takes up to five times as long; a fixed layout keeps the
two apart. Convolutions have no such kernels: they become products with the patches of their input.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.runtime.devices import platform

Map = Float[Array, "b h w i"]
Kernel = Float[Array, "kh kw i o"]
Convolved = Float[Array, "b h w o"]


def has_fast_products(dtype: DTypeLike) -> bool:
    """Whether products in this dtype need the form above: bfloat16 on CPUs since jax 0.12."""
    return dtype == jnp.bfloat16 and platform() == "cpu" and jax.__version_info__ >= (0, 12)


def product(
    x: Float[Array, "*axes i"], w: Float[Array, "i o"], dtype: DTypeLike
) -> Float[Array, "*axes o"]:
    """x w in the dtype of x, with results of `dtype`; both may be transposes."""
    if not has_fast_products(x.dtype):
        return jnp.matmul(x, w, preferred_element_type=dtype)
    return _by_rows(jnp.matmul(_by_rows(x), _by_rows(w), preferred_element_type=dtype))


def _by_rows(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


@jax.custom_vjp
def convolve(x: Map, kernel: Kernel) -> Convolved:
    """Convolution by a product with patches: stride 1, an odd kernel, zeros around x, and a result
    as large as x.
    """
    kh, kw, i, o = kernel.shape
    return product(_patches(x, kh, kw), kernel.reshape(kh * kw * i, o), x.dtype)


def _forward(x: Map, kernel: Kernel) -> tuple[Convolved, tuple[Map, Kernel]]:
    return convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Map, Kernel], g: Convolved) -> tuple[Map, Kernel]:
    x, kernel = saved
    kh, kw, i, o = kernel.shape
    dx = convolve(g, kernel[::-1, ::-1].swapaxes(2, 3))
    rows = _patches(x, kh, kw).reshape(-1, kh * kw * i)
    dw = product(rows.T, g.reshape(-1, o), jnp.float32)
    return dx, dw.reshape(kernel.shape).astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


def _patches(x: Map, kh: int, kw: int) -> Float[Array, "b h w p"]:
    """The kh x kw neighbours of each position, with zeros beyond the border."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    parts = [padded[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)]
    patches = jnp.stack(parts, axis=3)
    patches = _by_rows(patches) if has_fast_products(x.dtype) else patches
    return patches.reshape(*x.shape[:3], -1)
