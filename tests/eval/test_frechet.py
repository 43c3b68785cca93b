import functools
import operator

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from vqd_jax.core.errors import UserError
from vqd_jax.eval.frechet import Moments, frechet_distance


def features(random, n, d):
    """Correlated, of scales from 0.01 to 100, and far from 0, where sums of squares lose half of
    their digits.
    """
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) + 1e4) * np.logspace(-2, 2, d)


def moments(batches):
    return functools.reduce(operator.add, map(Moments.of, batches))


def distance(a, b):
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 199), max_size=12, unique=True))
@settings(max_examples=30, deadline=None)
def test_moments_depend_on_neither_batches_nor_order_nor_devices(seed, cuts):
    random = np.random.default_rng(seed)
    x = features(random, 200, 6)
    exact = x.astype(np.longdouble)
    mean = exact.mean(axis=0)
    covariance = (exact - mean).T @ (exact - mean) / 199
    batches = np.split(x[random.permutation(200)], sorted(cuts))
    in_turn = moments(iter(batches))
    parts = [moments(batches[device::3]) for device in range(min(3, len(batches)))]
    together = functools.reduce(operator.add, reversed(parts))
    scale = np.sqrt(np.diag(covariance))
    for result in (in_turn, together, Moments.of(x)):
        assert result.count == 200 and result.mean.dtype == result.scatter.dtype == np.float64
        np.testing.assert_allclose(result.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(
            result.covariance / np.outer(scale, scale),
            covariance / np.outer(scale, scale),
            rtol=0,
            atol=1e-10,
        )


def test_single_images_in_turn_are_the_covariance_of_numpy():
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    result = moments(x[i : i + 1] for i in range(40))
    np.testing.assert_allclose(result.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-11
    )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_covariances_with_the_same_axes(seed):
    """The distance is that of independent Gaussians of one dimension each, also where some have no
    width.
    """
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(12, 12)))[0]
    shift, (a, b) = (
        random.normal(size=12),
        random.gamma(1, size=(2, 12)) * random.integers(0, 2, size=(2, 12)),
    )
    exact = np.sum(shift**2) + np.sum((a - b) ** 2)
    mean = random.normal(size=12)
    result = frechet_distance(mean, axes * a**2 @ axes.T, mean + shift, axes * b**2 @ axes.T)
    assert result == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("n, m", [(200, 300), (20, 300), (200, 20), (10, 20), (2, 2)])
def test_against_the_matrix_square_root_and_the_factors_of_the_covariances(n, m):
    """Also for fewer images than the 48 dimensions. tr (A B)^(1/2) is the nuclear norm of X Y^T if
    A = X^T X and B = Y^T Y.
    """
    random = np.random.default_rng(n * m)
    x, y = (
        random.normal(size=(n, 48)),
        random.normal(0.3, 2, (m, 48)) @ random.normal(size=(48, 48)),
    )
    a, b = Moments.of(x), Moments.of(y)
    nuclear = np.linalg.svd((x - a.mean) @ (y - b.mean).T, compute_uv=False).sum() / np.sqrt(
        (n - 1) * (m - 1)
    )
    rest = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance)
    assert distance(a, b) == pytest.approx(rest - 2 * nuclear, rel=1e-11)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    if np.isfinite(root).all():  # SciPy gives up on some singular products
        assert distance(a, b) == pytest.approx(rest - 2 * np.trace(root).real, rel=1e-6)
    else:
        assert min(n, m) < 48
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-12)


def test_equal_sets_have_no_distance_and_points_have_the_square_of_theirs():
    x = features(np.random.default_rng(1), 20, 30)
    a, scale = Moments.of(x), np.trace(Moments.of(x).covariance)
    assert 0 <= distance(a, a) < 1e-12 * scale
    zero = np.zeros((2, 2))
    assert frechet_distance(np.array([0.0, 1.0]), zero, np.array([3.0, 5.0]), zero) == 25


def test_float32_statistics_are_computed_with_in_float64():
    random = np.random.default_rng(2)
    a, b = (Moments.of(random.normal(size=(50, 8))) for _ in range(2))
    rounded = [x.astype(np.float32) for x in (a.mean, a.covariance, b.mean, b.covariance)]
    assert frechet_distance(*rounded) == pytest.approx(
        frechet_distance(*(x.astype(np.float64) for x in rounded)), rel=1e-12
    )


def test_bad_input_is_an_error():
    x = np.ones((3, 4))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        _ = Moments.of(x[:1]).covariance
    with pytest.raises(UserError, match="at least 1 images, got 0"):
        Moments.of(x[:0])
    with pytest.raises(UserError, match="of 1 of 3 images have NaN"):
        Moments.of(np.where(np.eye(3, 4, 1, dtype=bool) & (np.arange(3)[:, None] == 1), np.nan, x))
    with pytest.raises(UserError, match="one width, got 4 and 3"):
        moments([x, x[:, :3]])
    with pytest.raises(UserError, match=r"one width, got \(4,\), \(4, 4\), \(3,\) and \(3, 3\)"):
        distance(Moments.of(x), Moments.of(x[:, :3]))
    with pytest.raises(UserError, match="finite means"):
        frechet_distance(np.array([np.nan]), np.eye(1), np.zeros(1), np.eye(1))
