import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqd_jax.core.errors import UserError
from vqd_jax.eval.kernels import cmmd, kid_subsets, polynomial_mmd2, polynomial_mmd2_error


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 4096]))
@settings(max_examples=15, deadline=None)
def test_cmmd_is_the_double_sum_over_embeddings_of_length_1(seed, block):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(7, 4)), random.normal(0.5, 3, (9, 4))

    def mean(u, v):
        u, v = ([[a / math.hypot(*row) for a in row] for row in rows] for rows in (u, v))
        return sum(math.exp(-(math.dist(a, b) ** 2) / 200) for a in u for b in v) / (
            len(u) * len(v)
        )

    exact = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y, block=block) == pytest.approx(exact, rel=1e-9)
    assert cmmd(y * 7, x, block=block) == pytest.approx(exact, rel=1e-9)


def test_cmmd_of_points():
    """Two copies of e1 against two of -e1: 2 - 2 exp(-4 / 200)."""
    x = np.array([[1.0, 0.0]] * 2)
    assert cmmd(x, -x) == pytest.approx(2000 * (1 - math.exp(-0.02)), rel=1e-12)
    random = np.random.default_rng(0)
    y = random.normal(size=(50, 6)).astype(np.float32)
    assert 0 <= cmmd(y, y[::-1]) < 1e-9


def test_the_polynomial_discrepancy_takes_sets_of_different_sizes():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(4, 3)), random.normal(size=(6, 3))

    def kernel(u, v):
        return (sum(a * b for a, b in zip(u, v, strict=True)) / 3 + 1) ** 3

    within = [
        sum(kernel(u, v) for i, u in enumerate(z) for j, v in enumerate(z) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    exact = sum(within) - 2 * sum(kernel(u, v) for u in x for v in y) / 24
    assert polynomial_mmd2(x, y) == pytest.approx(exact, rel=1e-12)


def by_definition(x, y, of_x, of_y):
    """Three means over the pairs of different records, and the jackknife over records."""

    def mean(u, v, of_u, of_v, without):
        values = [
            (float(a @ b) / len(a) + 1) ** 3
            for a, i in zip(u, of_u, strict=True)
            for b, j in zip(v, of_v, strict=True)
            if i != j and without not in (i, j)
        ]
        return sum(values) / len(values)

    def value(without=None):
        return (
            mean(x, x, of_x, of_x, without)
            + mean(y, y, of_y, of_y, without)
            - 2 * mean(x, y, of_x, of_y, without)
        )

    strata = {*of_x} & {*of_y}, {*of_x} - {*of_y}, {*of_y} - {*of_x}
    variance = 0.0
    for stratum in filter(None, strata):
        left = [value(record) for record in stratum]
        variance += (len(left) - 1) / len(left) * sum((v - np.mean(left)) ** 2 for v in left)
    return value(), variance**0.5


@pytest.mark.parametrize(
    "of_x, of_y",
    [
        ([3, 0, 1, 2, 4], [0, 1, 2, 3, 4]),  # one image of each record
        ([0, 1, 2, 3, 4], [5, 6, 7, 8]),  # none of the same
        ([0, 0, 1, 1, 2, 2, 7], [0, 1, 2, 5]),  # several images of a record, and others
    ],
)
def test_pairs_of_a_record_are_left_out(of_x, of_y):
    random = np.random.default_rng(len(of_x))
    x, y = random.normal(size=(len(of_x), 3)), random.normal(0.5, 2, (len(of_y), 3))
    value, error = by_definition(x, y, of_x, of_y)
    assert polynomial_mmd2(x, y, (of_x, of_y)) == pytest.approx(value, rel=1e-10)
    assert polynomial_mmd2_error(x, y, (of_x, of_y)) == pytest.approx(error, rel=1e-10)
    alone = [*range(len(x))], [*range(100, 100 + len(y))]
    assert polynomial_mmd2(x, y) == pytest.approx(by_definition(x, y, *alone)[0], rel=1e-10)
    assert polynomial_mmd2_error(x, y) == pytest.approx(by_definition(x, y, *alone)[1], rel=1e-10)


def test_near_copies_are_no_better_than_real_images():
    """With the pairs of an image and its copy the distance is -2 / n times what the kernel is
    larger on them; without them it is 0.
    """
    random, n = np.random.default_rng(4), 400
    x = random.normal(size=(n, 8))
    y = x + 1e-6 * random.normal(size=x.shape)
    kernel = lambda u, v: (u @ v.T / 8 + 1) ** 3
    gap = np.diag(kernel(x, y)).mean() - kernel(x, y).mean()
    assert polynomial_mmd2(x, y) == pytest.approx(-2 / n * gap, rel=0.01)
    assert abs(polynomial_mmd2(x, y, (range(n), range(n)))) < 1e-5
    order = random.permutation(n)
    values = kid_subsets(
        x[order], y, subsets=5, subset_size=50, records=(order, np.arange(n))
    )  # subsets of the same records
    assert np.abs(values).max() < 1e-4


def test_the_error_of_many_images_is_scaled():
    random = np.random.default_rng(5)
    x, y = random.normal(size=(900, 3)), random.normal(0.5, 1, (900, 3))
    whole, part = polynomial_mmd2_error(x, y), polynomial_mmd2_error(x, y, most=300)
    assert part == pytest.approx(whole, rel=0.2)


def kid(x, y, **subsets):
    """Mean and standard deviation over subsets."""
    values = kid_subsets(x, y, **subsets)
    return float(np.mean(values)), float(np.std(values))


def brute_mmd2(x, y):
    def kernel(u, v):
        return (sum(a * b for a, b in zip(u, v, strict=True)) / len(u) + 1) ** 3

    m = len(x)
    within = [
        sum(kernel(z[i], z[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * sum(kernel(u, v) for u in x for v in y) / m**2


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_kid_on_whole_sets_is_the_double_sum(seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(6, 5)), random.normal(0.5, 2, (6, 5))
    mean, deviation = kid(x, y, subsets=3, subset_size=6, seed=seed)
    assert mean == pytest.approx(brute_mmd2(x.tolist(), y.tolist()), rel=1e-9, abs=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_and_sees_a_shift():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 400, 16)).astype(np.float32)
    mean, deviation = kid(x, y, subsets=60, subset_size=100, seed=1)
    assert abs(mean) < deviation  # a biased estimate would be about E k(x, x) / 100 = 0.1 above 0
    assert kid(x, y + 0.5, subsets=20, subset_size=100)[0] > 10 * deviation
    assert kid(x, y, subsets=5, subset_size=100, seed=2) == kid(
        x, y, subsets=5, subset_size=100, seed=2
    )


def test_kid_expectation_of_gaussians():
    """For d = 1 and N(0, 1) against N(c, 1): E k follows from the moments of the normal
    distribution.
    """
    c, n = 0.7, 2000
    random = np.random.default_rng(3)

    def expected(mu, nu):  # E (xy + 1)^3, x ~ N(mu, 1), y ~ N(nu, 1)
        def moments(m):
            return 1, m, m * m + 1, m**3 + 3 * m

        return sum(
            math.comb(3, i) * a * b
            for i, (a, b) in enumerate(zip(moments(mu), moments(nu), strict=True))
        )

    exact = expected(0, 0) + expected(c, c) - 2 * expected(0, c)
    mean, _ = kid(
        random.normal(size=(n, 1)), random.normal(c, 1, (n, 1)), subsets=20, subset_size=1000
    )
    assert mean == pytest.approx(exact, rel=0.15)


def test_bad_input_is_an_error():
    x = np.ones((3, 2))
    for measure in (cmmd, polynomial_mmd2):
        with pytest.raises(UserError, match="one width, got 2 and 1"):
            measure(x, x[:, :1])
        with pytest.raises(UserError, match="the second set must be finite, but those of 3 of 3"):
            measure(x, x * np.nan)
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        polynomial_mmd2(x[:1], x)
    with pytest.raises(UserError, match="the first set must not be zero, but 1 of 3 are"):
        cmmd(x * np.array([[1], [0], [1]]), x)
    with pytest.raises(UserError, match="subset_size=5 with 3 and 3"):
        kid_subsets(x, x, subset_size=5)
