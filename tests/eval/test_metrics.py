import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from vqd_jax.core.errors import UserError
from vqd_jax.eval.metrics import bits, bits_per_dim, codebook_use, kid, psnr


def test_psnr_of_known_errors():
    x = np.full((3, 4, 4, 3), 100, np.uint8)
    y = x.copy()
    y[1] += 1
    y[2] = 255
    assert psnr(x, y).tolist() == pytest.approx(
        [math.inf, 20 * math.log10(255), 20 * math.log10(255 / 155)]
    )
    assert psnr(x, y).tolist() == psnr(y, x).tolist()  # no wrap-around of bytes


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


def test_codebook_use():
    tokens = np.array([[0, 0, 1], [3, 3, 3]])
    perplexity, used = codebook_use(tokens, codes=8)
    assert perplexity == pytest.approx(math.exp(entropy([2, 1, 3]))) and used == 3 / 8
    assert codebook_use(np.arange(8), codes=8) == (pytest.approx(8), 1.0)


def test_bits():
    assert bits(math.log(512)) == pytest.approx(9)
    assert bits_per_dim(64 * math.log(512), dims=32 * 32 * 3) == pytest.approx(64 * 9 / 3072)


def test_bad_input_is_an_error():
    x = np.zeros((4, 2))
    with pytest.raises(UserError, match="subset_size=5 with 4 and 4"):
        kid(x, x, subset_size=5)
    with pytest.raises(UserError, match=r"\[0, 4\)"):
        codebook_use(np.array([4]), codes=4)
