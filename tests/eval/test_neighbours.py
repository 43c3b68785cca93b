import dataclasses
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqd_jax.core.errors import UserError
from vqd_jax.eval.neighbours import neighbourhoods


def by_definition(real, generated, k, closed=False):
    """(precision, recall, density, coverage) in plain Python, on whole numbers, whose ties are
    exact. `closed` balls of precision and recall include their edge.
    """
    within = operator.le if closed else operator.lt

    def squared(x, y):
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    def ball(points, i):
        return sorted(squared(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    reals, generateds = (
        [ball(points, i) for i in range(len(points))] for points in (real, generated)
    )
    around = [
        [squared(r, g) < radius for r, radius in zip(real, reals, strict=True)] for g in generated
    ]
    precision = sum(
        any(within(squared(r, g), radius) for r, radius in zip(real, reals, strict=True))
        for g in generated
    ) / len(generated)
    recall = sum(
        any(within(squared(r, g), radius) for g, radius in zip(generated, generateds, strict=True))
        for r in real
    ) / len(real)
    density = sum(map(sum, around)) / len(generated) / k
    coverage = sum(any(column) for column in zip(*around, strict=True)) / len(real)
    return precision, recall, density, coverage


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.sampled_from([2, 5, 7, 4096]),
    st.sampled_from([2, 9]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_as_defined_with_ties_and_copies_in_blocks_of_any_size(seed, k, block, spread, closed):
    random = np.random.default_rng(seed)
    real, generated = random.integers(0, spread, (17, 3)), random.integers(0, spread + 1, (13, 3))
    result = neighbourhoods(real / 1.0, generated / 1.0, k=k, closed=closed, block=block)
    assert dataclasses.astuple(result) == pytest.approx(
        by_definition(real.tolist(), generated.tolist(), k, closed), rel=1e-12
    )


def test_an_image_that_is_there_twice_is_inside_a_closed_ball_only():
    """With k = 1 the balls of twins have radius 0, and guided-diffusion counts their edge."""
    real = np.repeat(np.array([[0.0, 0], [5, 0], [0, 9]]), 2, axis=0)
    generated = np.array([[0.0, 0], [5, 0], [1, 1], [1, 1]])
    scores = {c: neighbourhoods(real, generated, k=1, closed=c) for c in (False, True)}
    assert (scores[True].precision, scores[False].precision) == (0.5, 0)
    assert (scores[True].density, scores[True].coverage) == (0, 0)  # as in prdc


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("block", [13, 64, 4096])
def test_a_set_in_another_order_has_only_ones(offset, block):
    random = np.random.default_rng(0)
    real = random.normal(size=(150, 40)) + offset
    scores = neighbourhoods(real, random.permutation(real), k=5, block=block)
    assert dataclasses.astuple(scores) == (1, 1, 1, 1)  # in each ball: its own image and 4 others


def test_sets_far_apart_and_a_collapsed_one():
    random = np.random.default_rng(1)
    real = random.normal(size=(100, 8))
    assert dataclasses.astuple(neighbourhoods(real, real + 100, k=3)) == (0, 0, 0, 0)
    collapsed = real[:1] + 1e-3 * random.normal(size=(100, 8))
    scores = neighbourhoods(real, collapsed, k=3)
    assert scores.precision == 1 and scores.recall <= 0.02 and scores.coverage < 0.2


def test_two_samples_of_one_distribution_have_density_1():
    random = np.random.default_rng(2)
    scores = neighbourhoods(
        random.normal(size=(900, 4)), random.normal(size=(900, 4)), k=5, block=256
    )
    assert scores.density == pytest.approx(1, abs=0.06)
    assert scores.coverage == pytest.approx(
        1 - 2**-5, abs=0.02
    )  # Naeem et al. 2020, Eq. (9), for many images


def test_bad_input_is_an_error():
    x = np.random.default_rng(3).normal(size=(6, 2))
    with pytest.raises(UserError, match="generated images must be of at least 6 images, got 5"):
        neighbourhoods(x, x[:5], k=5)
    with pytest.raises(UserError, match="k = 1, got 0"):
        neighbourhoods(x, x, k=0)
    with pytest.raises(UserError, match="one width, got 2 and 1"):
        neighbourhoods(x, x[:, :1], k=2)
    with pytest.raises(UserError, match="real images must be finite, but those of 1 of 6"):
        neighbourhoods(np.where(np.arange(6)[:, None] == 2, np.inf, x), x, k=2)
    with pytest.raises(UserError, match="blocks need at least one row, got 0"):
        neighbourhoods(x, x, k=2, block=0)
