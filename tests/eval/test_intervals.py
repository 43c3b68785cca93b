"""Intervals against scipy's, and how often they hold the true value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vqd_jax.eval import intervals
from vqd_jax.eval.kernels import polynomial_mmd2, polynomial_mmd2_error


@given(st.integers(1, 2000), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_wilson_is_that_of_scipy(count, part):
    hits = round(part * count)
    want = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(hits / count, count) == pytest.approx((want.low, want.high), abs=1e-12)


def test_shares_and_means():
    assert intervals.wilson(0.0, 10)[0] == 0 and intervals.wilson(1.0, 10)[1] == 1
    assert intervals.wilson(0.5, 0) == (0, 1)
    x = np.random.default_rng(0).normal(3, 2, 12).astype(np.float32)
    want = stats.t.interval(0.95, 11, loc=x.mean(), scale=stats.sem(x))
    assert intervals.mean("psnr", x) == {
        "psnr": pytest.approx(x.mean()),
        "psnr_interval": pytest.approx([*want], rel=1e-5),
    }
    assert intervals.share("found", np.array([1.0, 0.0, 0.5, 0.5])) == {
        "found": 0.5,
        "found_interval": [*intervals.wilson(0.5, 4)],
    }
    for values in (np.array([1.0]), np.array([1.0, np.inf])):  # PSNR of equal images is infinite
        assert intervals.mean("psnr", values).keys() == {"psnr"}
    assert intervals.normal(1.0, 2.0) == pytest.approx(stats.norm.interval(0.95, 1, 2))


D = 64


def squared_discrepancy(shift):
    """The squared MMD with the kernel of KID of the uniform distributions on [-1, 1]^D and on
    [-1, 1]^D + shift, from the moments of a product of two coordinates.
    """

    def expected(c, e):
        moments = lambda c: np.array([c, c * c + 1 / 3, c**3 + c])
        one, two, three = moments(c) * moments(e)
        square = D * two + D * (D - 1) * one**2
        cube = D * three + 3 * D * (D - 1) * two * one + D * (D - 1) * (D - 2) * one**3
        return 1 + 3 * one + 3 * square / D**2 + cube / D**3

    return expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)


@pytest.mark.parametrize("shift, paired", [(0.2, False), (0.2, True), (0.0, True)])
def test_the_interval_of_a_kernel_distance_holds_the_true_one(shift, paired):
    """In 95 % of 200 trials, three standard errors fewer allowed, or in more where the distributions
    are equal. With `paired` most y_i are x_i.
    """
    random, n, held = np.random.default_rng(7), 60, 0
    for _ in range(200):
        x, y = random.uniform(-1, 1, (2, n, D))
        if paired:
            y = np.where(random.random((n, 1)) < 0.8, x, y)
        records = (range(n), range(n)) if paired else None
        value, error = (f(x, y + shift, records) for f in (polynomial_mmd2, polynomial_mmd2_error))
        low, high = intervals.normal(value, error)
        held += low <= squared_discrepancy(shift) <= high
    assert 0.9 < held / 200 and (shift == 0 or held / 200 < 0.99)
