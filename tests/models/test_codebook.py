"""Quantisation against brute force, and moving averages against the published update in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models.codebook import Codebook, Codes, nearest, straight_through, usage

K, Z = 6, 3


def vectors(rows, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, Z)), jnp.float32)


def state(count=1.0, seed=9):
    start = vectors(K, seed)
    count = np.broadcast_to(np.float32(count), K)
    return Codes(vectors=start, count=jnp.asarray(count), total=2 * start)


@functools.partial(jax.jit, static_argnums=0)
def _update(book, codes, z, step):
    index = nearest(codes.vectors, z)
    return book.update_codes(jax.random.key(0), codes, z, index, step, None)


def update_codes(book, codes, z, step=0):
    return _update(book, codes, z, jnp.int32(step))


def distances(a, b):
    return np.square(np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)[None]).sum(-1)


@pytest.mark.parametrize("shape", [(40,), (2, 3, 4), ()])
def test_nearest_is_brute_force(shape):
    z = vectors(max(int(np.prod(shape)), 1)).reshape(*shape, Z) * 3 + 1
    book = vectors(50, 1) * 3
    got = jax.jit(nearest)(book, z)
    assert got.shape == shape
    np.testing.assert_array_equal(got.ravel(), distances(z.reshape(-1, Z), book).argmin(1))


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    z, q, weight = vectors(4), vectors(4, 1), vectors(4, 2)
    np.testing.assert_allclose(straight_through(z, q), q, atol=1e-6)
    loss = lambda z, q: (straight_through(z, q) * weight).sum()
    by_z, by_q = jax.jit(jax.grad(loss, argnums=(0, 1)))(z, q)
    np.testing.assert_array_equal(by_z, weight)
    np.testing.assert_array_equal(by_q, 0 * weight)


def test_moving_averages_are_the_published_ones():
    """N <- g N + (1 - g) n, m <- g m + (1 - g) sum z, e = m / ((N + eps) / (sum N + k eps) sum N),
    for several batches.
    """
    book = Codebook(codes=K, width=Z, decay=0.8, smoothing=0.05, restart_every=0)
    codes = state(count=[0.5, 1, 2, 3, 1, 0.01])
    e, n, m = (np.asarray(x, np.float64) for x in (codes.vectors, codes.count, codes.total))
    for step in range(5):
        z = vectors(20, 10 + step)
        chosen = distances(z, e).argmin(1)
        for i in range(K):
            mine = np.asarray(z, np.float64)[chosen == i]
            n[i], m[i] = 0.8 * n[i] + 0.2 * len(mine), 0.8 * m[i] + 0.2 * mine.sum(0)
        e = np.stack([m[i] / ((n[i] + 0.05) / (n.sum() + K * 0.05) * n.sum()) for i in range(K)])
        codes = update_codes(book, codes, z, step)
        np.testing.assert_allclose(codes.count, n, rtol=1e-5)
        np.testing.assert_allclose(codes.total, m, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(codes.vectors, e, rtol=1e-4, atol=1e-6)
    assert len(set(chosen)) > 2


def test_a_code_that_nothing_chooses_stays_finite():
    """Its count falls to 0.5^60; smoothing keeps the quotient from growing."""
    book, codes = Codebook(codes=K, width=Z, decay=0.5, restart_every=0), state()
    z = jnp.tile(codes.vectors[:1], (8, 1))
    for _ in range(60):
        codes = update_codes(book, codes, z)
    assert np.isfinite(codes.vectors).all()
    assert np.abs(codes.vectors[1:]).max() <= np.abs(state().total).max()
    np.testing.assert_allclose(codes.vectors[0], z[0], rtol=1e-3)


DEAD = [2.0, 2.0, 1e-3, 2.0, 1e-3, 2.0]


def far(codes):
    """A batch that the live codes choose, and no dead one: vectors beside the live codes."""
    live = np.flatnonzero(np.array(DEAD) > 1)
    near = np.asarray(codes.vectors)[np.repeat(live, 3)]
    return jnp.asarray(near + 0.01 * np.asarray(vectors(12, 3)))


@pytest.mark.parametrize("step,due", [(0, False), (2, False), (3, True), (4, False), (7, True)])
def test_dead_codes_move_onto_batch_vectors_when_due_and_only_then(step, due):
    settings = dict(codes=K, width=Z, decay=0.9, restart_below=0.05)
    codes, dead = state(DEAD), np.array(DEAD) < 1
    z = far(codes)
    assert not set(np.asarray(nearest(codes.vectors, z))) & set(np.flatnonzero(dead))
    plain = update_codes(Codebook(**settings, restart_every=0), codes, z, step)
    got = update_codes(Codebook(**settings, restart_every=4), codes, z, step)
    for name in ("vectors", "count", "total"):
        np.testing.assert_allclose(
            getattr(got, name)[~dead], getattr(plain, name)[~dead], rtol=1e-6
        )
    if not due:
        np.testing.assert_array_equal(got.vectors, plain.vectors)
        np.testing.assert_array_equal(got.count, plain.count)
        return
    away = distances(got.vectors[dead], z)
    assert (away.min(1) < (0.01 * z.std()) ** 2).all() and len(
        set(away.argmin(1))
    ) == 2  # two codes, two vectors
    np.testing.assert_allclose(got.count[dead], plain.count.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        got.total[dead], got.vectors[dead] * got.count[dead, None], rtol=1e-5
    )


def test_a_code_is_dead_below_a_share_of_an_even_split():
    """Counts after the batch: 0.9 of these, and 1.2 more in all: the mean is 1.55, 0.36 and 0.54
    are 0.23 and 0.35 of it.
    """
    codes = state([2.0, 2.0, 0.4, 2.0, 0.6, 2.0])
    z = far(state(DEAD))
    got = update_codes(
        Codebook(codes=K, width=Z, decay=0.9, restart_every=1, restart_below=0.3), codes, z
    )
    plain = update_codes(Codebook(codes=K, width=Z, decay=0.9, restart_every=0), codes, z)
    share = plain.count / plain.count.mean()
    assert share[2] < 0.3 < share[4]
    np.testing.assert_array_equal((got.vectors != plain.vectors).any(1), np.arange(K) == 2)


def test_four_devices_learn_what_one_does():
    book = Codebook(codes=K, width=Z, decay=0.9, restart_every=4)
    codes, z = state(DEAD), far(state(DEAD))
    want = update_codes(book, codes, z, 3)
    run = lambda codes, z: book.update_codes(
        jax.random.key(0), codes, z, nearest(codes.vectors, z), jnp.int32(3), "batch"
    )
    got = jax.pmap(run, axis_name="batch", in_axes=(None, 0))(codes, z.reshape(4, 3, Z))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        for device in range(4):
            np.testing.assert_allclose(a[device], b, rtol=1e-5, atol=1e-6)


def test_gradient_mode_leaves_the_vectors_to_the_optimizer():
    codes = state()
    got = update_codes(
        Codebook(codes=K, width=Z, updates="gradient", restart_every=0), codes, vectors(20)
    )
    np.testing.assert_array_equal(got.vectors, codes.vectors)
    assert (got.count != codes.count).any()


@pytest.mark.parametrize("rows", [200, 3])
def test_codes_start_on_vectors_of_the_batch(rows):
    z = vectors(rows)
    codes = jax.jit(Codebook(codes=K, width=Z).init)(jax.random.key(0), z)
    away = distances(codes.vectors, z)
    assert (away.min(1) < (0.01 * z.std()) ** 2).all()
    assert len(set(away.argmin(1))) == K if rows > K else len(np.unique(codes.vectors, axis=0)) == K
    np.testing.assert_array_equal(codes.count, np.ones(K))
    np.testing.assert_array_equal(codes.total, codes.vectors)


def test_usage_by_hand():
    run = jax.jit(usage, static_argnums=1)
    got = run(jnp.array([0, 0, 2, 2]), 4)
    assert got["codes_in_use"] == 0.5 and float(got["perplexity"]) == pytest.approx(2, rel=1e-6)
    got = run(jnp.array([1, 1, 1, 3]), 8)
    assert got["codes_in_use"] == 0.25
    assert float(got["perplexity"]) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rel=1e-5
    )


def test_usage_is_of_all_devices():
    index = jnp.asarray(np.random.default_rng(0).integers(0, 16, (4, 6)))
    shared = jax.pmap(lambda index: usage(index, 16, "batch"), axis_name="batch")(index)
    for name, want in jax.jit(usage, static_argnums=1)(index.reshape(-1), 16).items():
        np.testing.assert_allclose(shared[name], np.full(4, want), rtol=1e-6)


def test_an_unknown_update_is_one_sentence():
    with pytest.raises(
        UserError, match="codebook.updates must be 'ema' or 'gradient', got 'kmeans'"
    ):
        Codebook(codes=K, width=Z, updates="kmeans")
