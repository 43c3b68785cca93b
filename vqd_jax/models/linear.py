"""The linear layer of the transformers, with its backward pass written as two plain matrix
products.

Autodiff transposes the output of the weight gradient, which XLA's CPU backend runs several times
slower than the same product written row-major; results are equal up to rounding.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def product(x: Float[Array, "*axes i"], w: Float[Array, "i o"]) -> Float[Array, "*axes o"]:
    """x @ w, with gradients as two-dimensional products."""
    return x @ w


def _forward(x, w):
    return x @ w, (x, w)


def _backward(saved, g):
    x, w = saved
    x_2d, g_2d = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return (g_2d @ w.T).reshape(x.shape), x_2d.T @ g_2d


product.defvjp(_forward, _backward)


def _dot_general(x, w, dimension_numbers, precision=None, preferred_element_type=None):
    return product(x, w)


Linear = functools.partial(nn.Dense, dot_general=_dot_general)
