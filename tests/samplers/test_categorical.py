"""Draws of codes against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.samplers.categorical import sample_categorical, uniforms


def rows(logits, n, exclude=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(logits))
    u = uniforms(keys, n, 2, jnp.float32)
    spread = jnp.broadcast_to(logits[:, None], (len(logits), n, logits.shape[-1]))
    skip = (
        None
        if exclude is None
        else jnp.broadcast_to(jnp.asarray(exclude)[:, None], (len(logits), n))
    )
    return jax.jit(sample_categorical)(u, spread, skip)


@pytest.mark.parametrize("k", [1, 2, 5, 16, 17, pytest.param(600, marks=pytest.mark.slow)])
def test_draws_have_the_softmax_as_their_distribution(k):
    logits = jnp.asarray(3 * np.random.default_rng(k).normal(size=(3, k)), jnp.float32)
    codes, log_p, (own, other) = rows(logits, 100_000)
    p = np.exp(jax.nn.log_softmax(logits)).astype(np.float64)
    for i in range(3):
        counts = np.bincount(np.asarray(codes[i]), minlength=k)
        often = p[i] * 100_000 > 5
        if often.sum() > 1:
            f = p[i][often] / p[i][often].sum() * counts[often].sum()
            assert stats.chisquare(counts[often], f).pvalue > 1e-4
        np.testing.assert_allclose(log_p[i], np.log(p[i])[np.asarray(codes[i])], atol=1e-5)
    np.testing.assert_array_equal(own, 0)
    np.testing.assert_allclose(other, 1, rtol=1e-6)


def test_an_excluded_code_is_never_drawn_and_its_mass_is_exact():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 30)), jnp.float32)
    logits = logits.at[1, 7].set(
        25.0
    )  # 1 - p = 4e-10, which a difference of float32 numbers would not see
    skip = np.array([3, 7, 29, 30])
    codes, _, (own, other) = rows(logits, 50_000, skip)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(1, keepdims=True)
    for i, v in enumerate(skip):
        want = p[i] * (np.arange(30) != v)
        assert (np.asarray(codes[i]) != v).all()
        counts = np.bincount(np.asarray(codes[i]), minlength=30)
        kept = want > 0
        assert stats.chisquare(counts[kept], want[kept] / want.sum() * 50_000).pvalue > 1e-4
        np.testing.assert_allclose(other[i, 0], want.sum(), rtol=1e-5)
        np.testing.assert_allclose(own[i, 0], p[i, v] if v < 30 else 0, rtol=1e-5)


def test_what_has_no_probability_is_never_drawn():
    logits = jnp.full((1, 50), -1e4).at[0, jnp.array([0, 13, 49])].set(jnp.array([-3.0, 0.0, 2.0]))
    codes, _, _ = rows(logits, 200_000)
    assert set(np.unique(codes)) == {0, 13, 49}


@pytest.mark.parametrize("u", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval(u):
    logits = jnp.full((1, 1, 10), -1e4).at[0, 0, 4].set(0.0)
    code, _, _ = sample_categorical(jnp.full((2, 1, 1), u, jnp.float32), logits)
    assert code.item() == 4


def test_rows_have_their_own_noise():
    logits = jnp.zeros((1, 8))
    a = rows(jnp.tile(logits, (3, 1)), 100)[0]
    keys = jax.random.split(jax.random.key(0), 3)
    u = uniforms(keys[1:2], 100, 2, jnp.float32)
    np.testing.assert_array_equal(sample_categorical(u, jnp.zeros((1, 100, 8)))[0][0], a[1])
    assert (a[0] != a[1]).any()
