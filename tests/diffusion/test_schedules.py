"""The schedules against the figures and formulas they are published with."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.diffusion import schedules

# i, alpha, K beta, gamma, bar alpha, bar gamma of the released tables at T = 100; the code's index
# i is t = i + 1
RELEASED = [
    (0, 0.99999, 1.0e-6, 9e-6, 0.99999, 9e-6),
    (1, 0.9898990808, 1.0101e-8, 0.01010090909, 0.9898891818, 0.01010981818),
    (50, 0.9800003564, 3.9599e-8, 0.019999604, 0.4949490909, 0.5050499091),
    (98, 0.500222655, 2.4727e-5, 0.4997526178, 0.01010981818, 0.9898891818),
    (99, 0.0008902237, 9.8816e-5, 0.9990109604, 9e-6, 0.99999),
]


def tables(process):
    """One-step alpha, K beta, gamma (T,) and cumulative bar alpha, bar gamma (T + 1,)."""
    unmasked, intact = np.array(process.unmasked), np.array(process.intact)
    live, same = unmasked[1:] / unmasked[:-1], intact[1:] / intact[:-1]
    return live * same, live * (1 - same), 1 - live, unmasked * intact, 1 - unmasked


@pytest.mark.parametrize("k", [4, 2887])
@pytest.mark.parametrize("row", RELEASED, ids=lambda row: f"i={row[0]}")
def test_released_is_the_released_table(k, row):
    process = schedules.released(100, k)
    i, *want = row
    alpha, k_beta, gamma, bar_alpha, bar_gamma = tables(process)
    got = alpha[i], k_beta[i], gamma[i], bar_alpha[i + 1], bar_gamma[i + 1]
    np.testing.assert_allclose(got, want, rtol=3e-5)
    kernel = process.between(jnp.array([i]), jnp.array([i + 1]))  # and so in float32
    got = kernel.log_keep.item(), kernel.log_replace.item(), kernel.log_mask.item()
    np.testing.assert_allclose(got, np.log([want[0], want[1] / k, want[2]]), rtol=1e-6, atol=2e-4)


@pytest.mark.parametrize("T", [1, 4, 100, 1000])
def test_paper_is_linear_with_a_tenth_of_random_codes(T):
    t = np.arange(T + 1)
    *_, bar_alpha, bar_gamma = tables_of(schedules.paper(T, 8))
    np.testing.assert_allclose(bar_alpha, 1 - t / T, atol=1e-15)
    np.testing.assert_allclose(bar_gamma, 0.9 * t / T, atol=1e-15)
    *_, bar_alpha, bar_gamma = tables_of(schedules.paper(T, 8, final_mask=0.5))
    np.testing.assert_allclose(bar_alpha, 1 - t / T, atol=1e-15)
    np.testing.assert_allclose(bar_gamma, 0.5 * t / T, atol=1e-15)


def test_the_paper_without_replacement_or_masks_is_a_schedule_of_its_own():
    assert schedules.paper(50, 8, final_mask=1.0) == schedules.absorbing(50, 8)
    assert schedules.paper(50, 8, final_mask=0.0) == schedules.uniform(50, 8)
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=f"final_mask {share}"):
            schedules.paper(50, 8, final_mask=share)


def tables_of(process):
    unmasked, intact = np.array(process.unmasked), np.array(process.intact)
    return unmasked * intact, 1 - unmasked


@pytest.mark.parametrize("T", [1, 7, 100])
def test_absorbing_masks_only_and_uniform_replaces_only(T):
    ramp = np.arange(T + 1) / T
    absorbing, uniform = schedules.absorbing(T, 8), schedules.uniform(T, 8)
    np.testing.assert_allclose(absorbing.unmasked, 1 - ramp)
    np.testing.assert_array_equal(absorbing.intact, np.ones(T + 1))
    np.testing.assert_allclose(uniform.intact, 1 - ramp)
    np.testing.assert_array_equal(uniform.unmasked, np.ones(T + 1))


@pytest.mark.parametrize(
    "make",
    [
        schedules.paper,
        schedules.released,
        schedules.absorbing,
        schedules.cosine,
        schedules.hybrid,
        schedules.uniform,
    ],
)
def test_too_few_steps_are_one_sentence(make):
    for T in (0, -1):
        with pytest.raises(UserError, match=f"T.*got {T}"):
            make(T, 8)


def test_the_released_table_needs_two_steps():
    with pytest.raises(UserError, match="T >= 2, got 1"):
        schedules.released(1, 8)


def test_what_does_not_fall_from_one_is_an_error():
    with pytest.raises(ValueError, match="unmasked"):
        schedules.from_rates(np.array([1.0, 1.2]), np.ones(2), 8)
    with pytest.raises(ValueError, match="intact"):
        schedules.from_probabilities(
            np.array([1.0, 0.9]), np.array([1.0, 0.8]), 8
        )  # more intact than unmasked


def test_stored_tables_are_the_released_schedule():
    """As the released code writes them: logs of the cumulative tables in float32, t = 0 in the last
    slot.
    """
    T, k = 100, 2887
    alpha = np.linspace(0.99999, 9e-6, T)
    with np.errstate(divide="ignore"):
        log_alpha, log_beta = (
            np.log(x).astype(np.float32)
            for x in (np.append(alpha, 1), np.append(np.full(T, 1e-6 / k), 0))
        )
    process, want = schedules.stored(log_alpha, log_beta, k), schedules.released(T, k)
    np.testing.assert_allclose(process.unmasked, want.unmasked, rtol=3e-6)
    np.testing.assert_allclose(
        1 - np.array(process.intact), 1 - np.array(want.intact), rtol=1e-5, atol=1e-15
    )
    assert process.T == T and process.unmasked[0] == process.intact[0] == 1


@pytest.mark.parametrize(
    "alpha,beta,sentence",
    [
        (np.zeros(4), np.zeros(5), r"two tables of T \+ 1 numbers"),
        (np.log([0.5, 0.1]), np.log([0.1, 0.1]), "the last entry"),
    ],
)
def test_tables_that_cannot_be_are_one_sentence(alpha, beta, sentence):
    with pytest.raises(UserError, match=sentence):
        schedules.stored(alpha, beta, 4)


@pytest.mark.parametrize("T", [1, 7, 100])
def test_cosine_shows_few_tokens_at_first(T):
    process = schedules.cosine(T, 4)
    masked = 1 - np.array(process.unmasked)
    np.testing.assert_allclose(masked, np.sin(np.pi / 2 * np.arange(T + 1) / T), atol=1e-12)
    assert process.unmasked[-1] == 0 and set(process.intact) == {1.0}


@pytest.mark.parametrize("T", [1, 4, 100, 1000])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.25])
def test_hybrid_replaces_most_in_the_middle_and_ends_in_masks(T, p, chain):
    """The tables against one step after the other: at each time a share r is masked and
    4 p r (1 - r) is replaced, by a code drawn uniformly from all k.
    """
    process, k = schedules.hybrid(T, 8, replaced=p), 8
    q = np.eye(k + 1)
    for t, step in enumerate(chain(process).steps, 1):
        q, r = q @ step, t / T
        replaced = 4 * p * r * (1 - r)
        np.testing.assert_allclose(q[:k, k], r, atol=1e-14)
        want = np.full((k, k), replaced / k) + np.eye(k) * (1 - r - replaced)
        np.testing.assert_allclose(q[:k, :k], want, atol=1e-14)
        if 2 * t == T:
            np.testing.assert_allclose(q[0, 1:k].sum() * k / (k - 1), p, atol=1e-14)
    assert process.unmasked[-1] == 0  # exactly: samplers start from masks only


def test_hybrid_without_replacement_is_absorbing():
    assert schedules.hybrid(50, 8, replaced=0.0) == schedules.absorbing(50, 8)
    for share in (-0.1, 0.26):
        with pytest.raises(UserError, match=rf"in \[0, 0.25\], got replaced {share}"):
            schedules.hybrid(50, 8, replaced=share)
