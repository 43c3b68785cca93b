"""Muon (Jordan et al. 2024) on the matrices between layers, NAdamW on the other parameters.

As `optax.contrib.muon`, with its state, but the iteration of Newton and Schulz can run in bfloat16,
as in the authors' code, and its products are those of `models.products`: on a CPU optax's takes 2
to 4 times as long, nearly half of a training step of `pretrained/emoji`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float
from optax import contrib

from vqd_jax.core.shapes import Params
from vqd_jax.models.products import product

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2  # root mean square of an update at rate 1, that of AdamW (Liu et al. 2025)


def muon(
    rate: optax.Schedule, others: optax.GradientTransformation, decay: float, dtype: DTypeLike
) -> optax.GradientTransformation:
    """Muon with Nesterov momentum at this rate, its products in `dtype`; `others` updates the
    parameters that are no matrices between layers.
    """
    matrices = optax.chain(
        _orthogonal_momentum(dtype),
        optax.identity(),  # states of earlier versions have four parts
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({"muon": matrices, "adam": others}, labels)


def labels(params: Params) -> Any:
    """ "muon" for the kernels of linear layers and convolutions except the head's, else "adam"."""

    def label(path, x):
        names = [getattr(entry, "key", None) for entry in path]
        matrix = names[-1] == "kernel" and "head" not in names and x.ndim >= 2
        return "muon" if matrix else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _orthogonal_momentum(dtype: DTypeLike) -> optax.GradientTransformation:
    """The momentum of each kernel, made orthogonal and scaled by its shape."""

    def init(params):
        return contrib.MuonState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
            ns_coeffs=jnp.asarray(COEFFICIENTS),
        )

    def update(gradients, state, params=None):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, MOMENTUM, 1)
        ahead = optax.tree.bias_correction(mu, MOMENTUM, optax.safe_increment(count))
        now = optax.tree.bias_correction(gradients, MOMENTUM, count)
        updates = jax.tree.map(
            lambda m, g: _scaled(MOMENTUM * m + (1 - MOMENTUM) * g, dtype), ahead, now
        )
        return updates, contrib.MuonState(count=count, mu=mu, ns_coeffs=state.ns_coeffs)

    return optax.GradientTransformation(init, update)


def _scaled(kernel: Array, dtype: DTypeLike) -> Array:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return (RMS * max(matrix.shape) ** 0.5 * orthogonal(matrix, dtype)).reshape(kernel.shape)


def orthogonal(x: Float[Array, "r c"], dtype: DTypeLike) -> Float[Array, "r c"]:
    """U V^T of the singular value decomposition of x, but with singular values of 0.7 to 1.2 in
    place of 1; sums are float32 whatever `dtype` the products have.

    The term a x of the iteration is part of its product: a sum beside it would be a chain of
    elementwise operations on the whole matrix, which XLA's CPU backend computes again wherever x is
    read.
    """
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-8)
    a, b, c = COEFFICIENTS
    low = lambda y: y.astype(dtype)
    x, identity = low(x), jnp.eye(x.shape[0])
    for i in range(ITERATIONS):
        square = product(x, x.T, jnp.float32)
        polynomial = a * identity + b * square + c * product(low(square), low(square), jnp.float32)
        x = product(low(polynomial), x, dtype if i < ITERATIONS - 1 else jnp.float32)
    return x.T if tall else x
