"""Dropout by its shares, means and independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.dropout import Dropout


def drop(x, rate, rows, seed=0):
    return Dropout(rate).apply({}, x, rows, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_the_share_is_the_rate_and_the_mean_stays(rate):
    shape = (8, 25, 999)  # an odd number of elements in each row
    y = np.asarray(drop(jnp.ones(shape), rate, jnp.arange(8)))
    error = 4 * (rate * (1 - rate) / y.size) ** 0.5  # four standard errors
    assert abs((y == 0).mean() - rate) < error
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=2e-4)
    for axis in (0, 1, 2):  # neighbours are independent, also the two halves of a word
        zero = np.moveaxis(y == 0, axis, 0)
        both = (zero[1:] & zero[:-1]).mean()
        assert abs(both - rate**2) < 4 * (rate**2 / zero[1:].size) ** 0.5


def test_the_mask_of_a_row_follows_from_its_place_in_the_global_batch():
    x = jnp.ones((4, 6, 8))
    whole = drop(x, 0.3, jnp.arange(4))
    np.testing.assert_array_equal(drop(x[2:], 0.3, jnp.arange(2, 4)), whole[2:])
    assert (whole[0] != whole[1]).any() and (drop(x, 0.3, jnp.arange(4), 1) != whole).any()


def test_what_is_dropped_is_0_even_if_it_is_not_finite():
    x = jnp.full((1, 10, 10), jnp.inf)
    y = np.asarray(drop(x, 0.5, jnp.arange(1)))
    assert set(np.unique(y)) == {0, np.inf}


def test_rates_at_the_ends():
    x = jnp.ones((1, 10, 100), jnp.bfloat16)
    assert drop(x, 0.0, jnp.arange(1)) is x and Dropout(0.5).apply({}, x, None) is x
    y = drop(x, 1 - 1e-9, jnp.arange(1))
    assert y.dtype == jnp.bfloat16 and not y.any()
