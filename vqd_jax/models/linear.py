"""Linear layers and convolutions. Whatever dtype they compute in, the gradients of their biases are
sums in float32, and so are those of the kernels of linear layers.

The backward pass of a linear layer is written as two plain matrix products: autodiff transposes the
output of the weight gradient, which XLA's CPU backend runs several times slower than the same
product written row-major; results are equal up to rounding.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.models.products import convolve, has_fast_products, product


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear(
    x: Float[Array, "*axes i"], w: Float[Array, "i o"], b: Float[Array, " o"], dtype: DTypeLike
) -> Float[Array, "*axes o"]:
    """x w + b, a product in the dtype of x with results of `dtype`."""
    return _forward(x, w, b, dtype)[0]


def _forward(x, w, b, dtype):
    y = product(x, w.astype(x.dtype), dtype)
    return y + b.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,)), (x, w, b)


def _backward(dtype, saved, g):
    x, w, b = saved
    x_2d, g_2d = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    rows = g_2d.astype(x.dtype)
    dx = product(rows, w.astype(x.dtype).T, x.dtype).reshape(x.shape)
    dw = product(x_2d.T, rows, w.dtype)
    return dx, dw, g_2d.sum(0, dtype=b.dtype)


linear.defvjp(_forward, _backward)


class Linear(nn.Module):
    """x W + b over the last axis.

    Attributes:
      dtype: of the product.
      out_dtype: of the results; None for `dtype`.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    out_dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*axes i"]) -> Float[Array, "*axes o"]:
        w = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        return linear(x.astype(self.dtype), w, b, self.out_dtype or self.dtype)


def _all_but_bias(x: Array, kernel: Array, bias: Array | None, *, dtype: Any) -> tuple[Any, ...]:
    return x.astype(dtype), kernel.astype(dtype), bias


def _convolution(x: Array, kernel: Array, strides: Any, padding: Any, **rest: Any) -> Array:
    same = padding == "SAME" and set(strides) == {1}
    if same and has_fast_products(x.dtype):
        return convolve(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest)


class Conv(nn.Conv):
    """`flax.linen.Conv` that adds the bias in the bias's own dtype."""

    dtype: DTypeLike = jnp.float32
    promote_dtype: Any = _all_but_bias
    conv_general_dilated: Any = _convolution

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _ _ o"]:
        return super().__call__(x).astype(self.dtype)
