"""The same layers as flax's own Dense and Conv: parameters, values, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.linear import Conv, Linear


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 4, 5)])
def test_values_and_gradients_are_those_of_dense(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (*shape[:-1], 6)))
    compare(Linear(6, dtype=dtype), nn.Dense(6, dtype=dtype), x, g.astype(dtype), tolerance)


def compare(ours, theirs, x, g, tolerance):
    params, want = (jax.jit(model.init)(jax.random.key(2), x) for model in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, want)
    params = jax.tree.map(lambda p: p + 0.1, params)  # a bias that shows

    def run(model):
        out, backward = jax.jit(lambda p, x: jax.vjp(model.apply, p, x))(params, x)
        return out, *backward(g)

    for got, want in zip(jax.tree.leaves(run(ours)), jax.tree.leaves(run(theirs)), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_bias_is_an_exact_sum(dtype):
    """The sum of 64 x 64 ones, of which bfloat16 could not even hold the 257th."""
    x = jnp.ones((4, 32, 32, 3))
    for layer in (Linear(2, dtype=dtype), Conv(2, (3, 3), dtype=dtype)):
        params = layer.init(jax.random.key(0), x)
        total = lambda p, layer=layer: layer.apply(p, x).astype(jnp.float32).sum()
        gradient = jax.jit(jax.grad(total))(params)["params"]
        np.testing.assert_array_equal(gradient["bias"], [4096, 4096])
        assert layer.apply(params, x).dtype == dtype
        if isinstance(layer, Linear):
            np.testing.assert_array_equal(gradient["kernel"], np.full((3, 2), 4096))


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_conv(dtype, tolerance):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 6, 6, 3), (2, 3, 3, 4)))
    options = dict(features=4, kernel_size=(3, 3), strides=2, padding=((0, 1), (0, 1)), dtype=dtype)
    compare(Conv(**options), nn.Conv(**options), x, g.astype(dtype), tolerance)


def test_it_works_under_vmap():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    layer = Linear(2)
    params = jax.jit(layer.init)(jax.random.key(1), x[0])
    loss = lambda p, x: jnp.square(layer.apply(p, x)).sum()
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, x)["params"]["kernel"]
    x, w = np.asarray(x), np.asarray(params["params"]["kernel"])
    for i in range(3):
        np.testing.assert_allclose(each[i], 2 * x[i].T @ (x[i] @ w), rtol=1e-5, atol=1e-6)
