"""The branch form against explicit float64 matrices, and against the dense form in the distribution
of its draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.diffusion import schedules
from vqd_jax.diffusion.posterior import posterior_coefficients
from vqd_jax.samplers.ancestral import posterior_step

SCHEDULES = ["paper", "released", "absorbing", "uniform", "cosine", "hybrid"]


def distribution(process, p, z, s, t, remasking=0.0):
    """p(z_s | z_t = z) over k + 1 states, put together from the coefficients."""
    c, k = posterior_coefficients(process, np.array([s]), np.array([t]), remasking), process.k
    c = type(c)(*(float(np.broadcast_to(x, (1,))[0]) for x in c))
    out = np.zeros(k + 1)
    if z == k:
        out[:k] = (1 - c.stay_masked) * (c.from_model * p + (1 - c.from_model) / k)
        out[k] = c.stay_masked
        return out
    own, other = p[z], 1 - p[z]
    elsewhere = np.arange(k) != z
    out[:k][elsewhere] = c.redraw * p[elsewhere] + (
        c.replace_same * own + c.replace_other * other
    ) / (k - 1)
    out[z] = c.keep_same * own + c.keep_other * other
    out *= 1 - c.remask
    out[k] += c.remask
    return out


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T,k", [(6, 4), (100, 7), (3, 2)])
def test_branches_are_bayes_rule_for_every_pair_of_times(name, T, k, chain):
    process = getattr(schedules, name)(T, k)
    exact, p = chain(process), np.random.default_rng(0).dirichlet(np.ones(k), size=k + 1)
    pairs = [(s, t) for t in {1, 2, T // 2, T - 1, T} for s in {0, 1, t // 2, t - 1} if s < t]
    for s, t in pairs:
        for z in np.flatnonzero(exact.between(0, t)[:k].sum(0) > 0):
            got = distribution(process, p[z], z, s, t)
            np.testing.assert_allclose(got, exact.reverse(p[z], z, s, t), atol=1e-12, rtol=0)
            np.testing.assert_allclose(got.sum(), 1, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_remasking_leaves_the_marginals_as_they_are(name, share, chain):
    process = getattr(schedules, name)(8, 4)
    exact = chain(process)
    for s, t in [(0, 1), (0, 8), (3, 4), (2, 7), (7, 8)]:
        for x in range(4):
            p = np.eye(4)[x]
            q_t = exact.between(0, t)[x]
            got = sum(
                q_t[z] * distribution(process, p, z, s, t, share) for z in range(5) if q_t[z] > 0
            )
            np.testing.assert_allclose(got, exact.between(0, s)[x], atol=1e-12)
    if share and name not in ("uniform",):
        assert posterior_coefficients(process, np.array([4]), np.array([5]), share).remask > 0


def test_a_rate_that_is_too_large_would_change_them(chain):
    process = schedules.paper(8, 4)
    exact, p = chain(process), np.eye(4)[1]
    q_t = exact.between(0, 5)[1]
    c = posterior_coefficients(process, np.array([4]), np.array([5]), 1.0)
    wrong = c._replace(remask=c.remask * 1.2)
    got = sum(q_t[z] * (distribution(process, p, z, 4, 5, 1.0) if z == 4 else 0) for z in range(5))
    assert not np.allclose(
        got[4] + q_t[:4].sum() * wrong.remask, exact.between(0, 4)[1][4], atol=1e-3
    )


@pytest.mark.parametrize(
    "name",
    ["paper", *(pytest.param(n, marks=pytest.mark.slow) for n in SCHEDULES if n != "paper")],
)
def test_a_million_draws_have_the_dense_posterior(name):
    """The compiled step that users run, in float32, against `MaskAndReplace.reverse`."""
    T, k, n = 20, 11, 250_000
    process = getattr(schedules, name)(T, k)
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 1, k))
    z = jnp.array([[k], [0], [3], [int(logits[3, 0].argmax())]])
    s, t = 7, 12
    if name == "uniform":
        z = z.at[0].set(5)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(4))
    coefficients = jax.tree.map(
        lambda x: x[0], posterior_coefficients(process, np.array([s]), np.array([t]))
    )
    step = jax.jit(lambda ks, x, z: posterior_step(ks, 3, process, x, z, coefficients))
    drawn = step(keys, jnp.broadcast_to(logits, (4, n, k)), jnp.broadcast_to(z, (4, n)))
    want = np.exp(
        np.asarray(process.reverse(logits, z, jnp.full(4, s), jnp.full(4, t)), np.float64)
    )[:, 0]
    for i in range(4):
        counts, p = np.bincount(np.asarray(drawn[i]), minlength=k + 1), want[i] / want[i].sum()
        rare = p * n < 5
        if rare.any():
            assert counts[rare].sum() < 40
        if (~rare).sum() > 1:
            assert (
                stats.chisquare(
                    counts[~rare], p[~rare] / p[~rare].sum() * counts[~rare].sum()
                ).pvalue
                > 1e-4
            )


@pytest.mark.slow  # 5 s
def test_the_statistic_can_fail():
    process, n = schedules.paper(20, 11), 250_000
    logits, z = jnp.zeros((1, n, 11)), jnp.zeros((1, n), int)
    coefficients = jax.tree.map(
        lambda x: x[0], posterior_coefficients(process, np.array([7]), np.array([12]))
    )
    drawn = posterior_step(
        jax.random.split(jax.random.key(0), 1), 0, process, logits, z, coefficients
    )
    wrong = np.exp(
        np.asarray(
            process.reverse(logits[:, :1], z[:, :1], jnp.array([6]), jnp.array([12])), np.float64
        )
    )[0, 0][:-1]
    counts = np.bincount(np.asarray(drawn[0]), minlength=12)[:-1]
    assert stats.chisquare(counts, wrong / wrong.sum() * counts.sum()).pvalue < 1e-4
