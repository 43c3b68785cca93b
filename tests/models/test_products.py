"""Products and convolutions, against XLA's own and by the compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.linear import Conv, Linear, linear
from vqd_jax.models.products import convolve, has_fast_products, product

fast = pytest.mark.skipif(
    not has_fast_products(jnp.bfloat16), reason="jax has no bfloat16 kernels for this platform"
)


def xla(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    "dtype,tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (5, 3)], ids=str)
def test_a_convolution_and_its_gradients_are_those_of_xla(shape, dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 6, 7, 5)).astype(dtype)
    kernel = jax.random.normal(keys[1], (*shape, 5, 4)).astype(dtype)
    g = jax.random.normal(keys[2], (2, 6, 7, 4)).astype(dtype)
    exact = [a.astype(jnp.float32) for a in (x, kernel, g)]
    y, back = jax.vjp(convolve, x, kernel)
    want, want_back = jax.vjp(xla, *exact[:2])
    assert y.dtype == dtype
    for got, expected in zip((y, *back(g)), (want, *want_back(exact[2])), strict=True):
        error = np.abs(np.asarray(got, np.float32) - np.asarray(expected))
        assert error.max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_a_product_of_bfloat16_has_sums_in_float32(layout):
    x = jnp.ones((3, 1000), jnp.bfloat16) * 1.0078125  # 1 + 2^-7
    x = x.T.copy().T if layout == "transposed" else x
    w = jnp.ones((2, 1000), jnp.bfloat16).T
    np.testing.assert_array_equal(product(x, w, jnp.float32), np.full((3, 2), 1007.8125))


def kernels_of_all_products(loss, *arguments):
    """How many kernels of products the program of value and gradients has; fails if any product is
    outside of one.
    """
    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()
    products = len(re.findall(r" dot\(", text))
    assert "convolution(" not in text
    assert len(re.findall(r" dot\(%param", text)) == products  # in the computation of a fusion
    assert len(re.findall(r"fusion\(.*__ynn_fusion", text)) >= products
    return products


@fast
def test_the_gradient_of_a_transpose_gets_a_bfloat16_kernel():
    """As in a tied head, whose kernel is the transposed table of embeddings."""
    x, table = jnp.ones((16, 32)), jnp.ones((64, 32))
    bias = jnp.zeros(64)

    def loss(table, x):
        return jnp.square(linear(x.astype(jnp.bfloat16), table.T, bias, jnp.float32)).sum()

    assert kernels_of_all_products(loss, table, x) == 3
    assert np.isfinite(jax.jit(jax.grad(loss))(table, x)).all()


@fast
@pytest.mark.parametrize(
    "module,shape",
    [
        (Linear(48, dtype=jnp.bfloat16), (4, 64, 32)),
        (Conv(48, (3, 3), dtype=jnp.bfloat16), (2, 8, 8, 32)),
    ],
    ids=["linear", "convolution"],
)
def test_every_product_of_a_training_step_gets_a_bfloat16_kernel(module, shape):
    """Also where the layer before and the layer after hand over transposes."""
    x = jnp.ones(shape)
    params = module.init(jax.random.key(0), x)

    def loss(params, x):
        y = module.apply(params, x.swapaxes(-1, -2).swapaxes(-1, -2) * 2)
        return jnp.square(y.astype(jnp.float32)).sum()

    assert kernels_of_all_products(loss, params, x) == 3


def test_without_the_kernels_nothing_is_laid_out(monkeypatch):
    monkeypatch.setattr("vqd_jax.models.products.platform", lambda: "gpu")
    x = jnp.ones((4, 8), jnp.bfloat16)
    program = jax.make_jaxpr(lambda x: product(x, x.T, jnp.float32))(x)
    assert "layout" not in str(program)
