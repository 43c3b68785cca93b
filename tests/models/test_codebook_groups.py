"""Residual quantisation by groups of codes, and the update of each group, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models.codebook import Codebook, Codes, add

G, K, Z = 3, 5, 4
BOOK = Codebook(
    codes=K, width=Z, groups=G, decay=0.8, smoothing=0.05, restart_every=4, restart_below=0.05
)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tables(seed=1):
    """Codes (G, K, Z), each group finer than the one before it."""
    return numbers(G, K, Z, seed=seed) * np.array([1, 0.5, 0.25])[:, None, None]


def residual_quantiser(codes, z):
    """(indices (G, r), residuals (G, r, Z), sum of the codes (r, Z)) by the definition."""
    rest, indices, residuals, total = z.copy(), [], [], np.zeros_like(z)
    for table in codes:
        index = np.array([np.argmin([((x - e) ** 2).sum() for e in table]) for x in rest])
        indices.append(index)
        residuals.append(rest)
        total, rest = total + table[index], rest - table[index]
    return np.array(indices), np.array(residuals), total


def flat(codes):
    return jnp.asarray(codes.reshape(G * K, Z), jnp.float32)


def test_each_group_quantises_what_the_ones_before_it_left():
    codes, z = tables(), numbers(30, Z)
    indices, residuals, total = residual_quantiser(codes, z)
    got = jax.jit(BOOK.quantise)(flat(codes), jnp.asarray(z, jnp.float32))
    np.testing.assert_array_equal(got[0], indices)
    np.testing.assert_allclose(got[1], residuals, rtol=1e-5, atol=1e-6)
    found = jax.jit(BOOK.look_up)(flat(codes), got[0])
    np.testing.assert_allclose(add(found), total, rtol=1e-5, atol=1e-6)
    assert all(len(set(index)) > 2 for index in indices)


def test_any_axes_and_masked_tokens_add_nothing():
    codes = tables()
    index = np.random.default_rng(2).integers(0, K + 1, (G, 2, 3, 3))
    found = jax.jit(BOOK.look_up)(flat(codes), [*jnp.asarray(index)])
    padded = np.concatenate([codes, np.zeros((G, 1, Z))], axis=1)
    want = sum(padded[g][index[g]] for g in range(G))
    np.testing.assert_allclose(add(found), want, rtol=1e-5, atol=1e-6)
    indices, residuals = jax.jit(BOOK.quantise)(flat(codes), add(found))
    assert [x.shape for x in indices] == [(2, 3, 3)] * G and residuals[0].shape == (2, 3, 3, Z)


@functools.partial(jax.jit, static_argnums=(0, 4))
def update(book, codes, z, step, axis=None):
    indices, residuals = book.quantise(codes.vectors, z)
    stacked = jnp.stack(residuals), jnp.stack(indices)
    return book.update_codes(jax.random.key(0), codes, *stacked, step, axis)


def state(count=1.0):
    vectors = flat(tables())
    return Codes(vectors=vectors, count=jnp.full(G * K, count), total=count * vectors)


def test_moving_averages_are_those_of_each_group_on_its_own_residuals():
    book = Codebook(codes=K, width=Z, groups=G, decay=0.8, smoothing=0.05, restart_every=0)
    e, n, codes = tables(), np.ones((G, K)), state()
    m = e.copy()
    for step in range(4):
        z = numbers(40, Z, seed=10 + step)
        indices, residuals, _ = residual_quantiser(e, z)
        for g in range(G):
            for i in range(K):
                mine = residuals[g][indices[g] == i]
                n[g, i] = 0.8 * n[g, i] + 0.2 * len(mine)
                m[g, i] = 0.8 * m[g, i] + 0.2 * mine.sum(0)
            smooth = (n[g] + 0.05) / (n[g].sum() + K * 0.05) * n[g].sum()
            e[g] = m[g] / smooth[:, None]
        codes = update(book, codes, jnp.asarray(z, jnp.float32), jnp.int32(step))
        np.testing.assert_allclose(codes.count, n.ravel(), rtol=1e-5)
        np.testing.assert_allclose(codes.total, m.reshape(-1, Z), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(codes.vectors, e.reshape(-1, Z), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # 2 s
def test_a_dead_code_of_a_group_restarts_at_a_residual_of_that_group():
    """The second code of the second group is far from everything and counts as dead."""
    codes = tables()
    codes[1, 1] += 100
    count = np.ones((G, K))
    count[1, 1] = 1e-4
    before = Codes(
        vectors=flat(codes),
        count=jnp.asarray(count.ravel(), jnp.float32),
        total=flat(codes * count[..., None]),
    )
    z = numbers(60, Z)
    got = update(BOOK, before, jnp.asarray(z, jnp.float32), jnp.int32(3))
    residuals = residual_quantiser(codes, z)[1]
    fresh = np.asarray(got.vectors).reshape(G, K, Z)[1, 1]
    nearest = np.abs(residuals - fresh).max(-1).min(-1)
    assert nearest[1] < 1e-2 < min(nearest[0], nearest[2])
    others = np.arange(G * K) != K + 1
    early = update(BOOK, before, jnp.asarray(z, jnp.float32), jnp.int32(2))
    assert np.abs(early.vectors[K + 1] - got.vectors[K + 1]).max() > 0.01
    np.testing.assert_allclose(early.vectors[others], got.vectors[others], rtol=1e-6)


def test_codes_start_on_the_residuals_of_the_first_batch():
    z = numbers(40, Z)
    codes = jax.jit(BOOK.init)(jax.random.key(0), jnp.asarray(z, jnp.float32))
    vectors = np.asarray(codes.vectors, np.float64).reshape(G, K, Z)
    assert codes.count.tolist() == [1.0] * (G * K)
    np.testing.assert_array_equal(codes.total, codes.vectors)
    residuals = residual_quantiser(vectors, z)[1]
    for g in range(G):
        away = np.abs(vectors[g][:, None] - residuals[g][None]).max(-1).min(1)
        assert (away < 0.01).all()
    spread = residuals.std((1, 2))
    assert spread[2] < spread[1] < spread[0]


def test_four_devices_update_as_one_does():
    z, before = jnp.asarray(numbers(40, Z), jnp.float32), state(0.03)
    want = update(BOOK, before, z, jnp.int32(3))
    run = lambda codes, z: update(BOOK, codes, z, jnp.int32(3), "batch")
    got = jax.pmap(run, axis_name="batch", in_axes=(None, 0))(before, z.reshape(4, 10, Z))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(a[0], a[3])


def test_one_group_at_least():
    with pytest.raises(UserError, match="codebook.groups must be 1 or more, got 0"):
        Codebook(codes=K, width=Z, groups=0)
