import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqd_jax.core.errors import UserError
from vqd_jax.eval.kernels import cmmd, polynomial_mmd2


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


def test_bad_input_is_an_error():
    x = np.ones((3, 2))
    for measure in (cmmd, polynomial_mmd2):
        with pytest.raises(UserError, match="one width, got 2 and 1"):
            measure(x, x[:, :1])
        with pytest.raises(UserError, match="the other must be finite, but those of 3 of 3"):
            measure(x, x * np.nan)
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        polynomial_mmd2(x[:1], x)
    with pytest.raises(UserError, match="the one set must not be 0, but 1 of 3 are"):
        cmmd(x * np.array([[1], [0], [1]]), x)
