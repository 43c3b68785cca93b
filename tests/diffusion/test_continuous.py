"""The continuous-time bound against short steps of a finer process, and against the exact
likelihood.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.diffusion import elbo, process, schedules
from vqd_jax.diffusion.continuous import kernel_at, rate_and_auxiliary

T, K, FINE = 3, 4, 2000
SCHEDULES = ["paper", "absorbing", "uniform"]
rate = jax.jit(rate_and_auxiliary, static_argnums=0)


def finer(coarse):
    """The same process with FINE steps for each of its steps."""
    line = lambda p: tuple(np.interp(np.arange(T * FINE + 1) / FINE, np.arange(T + 1), p).tolist())
    return process.MaskAndReplace(
        unmasked=line(coarse.unmasked), intact=line(coarse.intact), k=coarse.k
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_steps_approach_the_rate(schedule):
    """KL of the posteriors of a step of length 1 / FINE, times FINE, for every pair of states."""
    coarse = getattr(schedules, schedule)(T, K)
    fine, rng = finer(coarse), np.random.default_rng(0)
    for t, back in ((1, 0.5), (2, 0.25), (3, 0.75)):
        pairs = [
            (x, z)
            for x in range(K)
            for z in range(K + 1)
            if not (schedule == "absorbing" and z not in (x, K))
            and not (schedule == "uniform" and z == K)
        ]
        z_0, z_t = (jnp.array(v)[:, None] for v in zip(*pairs))
        logits = jnp.asarray(2 * rng.normal(size=(len(pairs), 1, K)), jnp.float32)
        rows = len(pairs)
        place = round((t - back) * FINE)
        steps = elbo.bound_term(fine, logits, z_0, z_t, jnp.full(rows, place))
        got, auxiliary = rate(coarse, logits, z_0, z_t, jnp.full(rows, t), jnp.full(rows, back))
        np.testing.assert_allclose(got, steps * FINE, rtol=0.02, atol=0.01)
        np.testing.assert_allclose(
            auxiliary,
            elbo.bound_and_auxiliary(fine, logits, z_0, z_t, jnp.full(rows, place))[1],
            rtol=1e-5,
        )
        where = np.exp(
            kernel_at(coarse, jnp.array([t]), jnp.array([back])).push(
                process.log_onehot(jnp.array([[1]]), K + 1)
            )
        )[0, 0]
        want = np.exp(
            fine.between(jnp.array([0]), jnp.array([place])).push(
                process.log_onehot(jnp.array([[1]]), K + 1)
            )
        )[0, 0]
        np.testing.assert_allclose(where, want, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_the_bayes_optimal_denoiser_it_integrates_to_the_exact_likelihood(schedule):
    coarse, p_data = getattr(schedules, schedule)(T, K), np.array([0.5, 0.3, 0.15, 0.05])
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = np.zeros(K)
    for t in range(1, T + 1):
        for node, weight in zip((nodes + 1) / 2, weights / 2):
            q = np.exp(
                kernel_at(coarse, jnp.array([t]), jnp.array([node], jnp.float32))
                .push(process.log_onehot(jnp.arange(K)[None], K + 1))
                .astype(np.float64)
            )[0]
            pairs = [(x, z) for x, z in np.ndindex(K, K + 1) if q[x, z] > 1e-12]
            x, z = map(np.array, zip(*pairs))
            posterior = p_data[None] * q[:, z].T
            logits = np.log(np.maximum(posterior / posterior.sum(1, keepdims=True), 1e-30)).astype(
                np.float32
            )[:, None]
            rows = len(pairs)
            got, _ = rate(
                coarse,
                logits,
                x[:, None],
                z[:, None],
                jnp.full(rows, t),
                jnp.full(rows, node, jnp.float32),
            )
            np.add.at(total, x, weight * q[x, z] * np.asarray(got, np.float64)[:, 0])
    live, same = coarse.unmasked[-1], coarse.intact[-1]
    end = live * (same * np.eye(K) + (1 - same) / K)
    prior = np.where(
        end > 0, end * np.log(np.where(end > 0, end, 1) / np.where(end > 0, p_data @ end, 1)), 0
    ).sum(1)
    np.testing.assert_allclose(total + prior, -np.log(p_data), rtol=5e-3)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "released"])
def test_finite_with_finite_gradients_for_any_logits(schedule):
    coarse, rows = getattr(schedules, schedule)(100, 50), 5 * 4
    z_t = (
        jnp.tile(jnp.array([[50, 0, 3, 50]]), (rows, 1))
        if schedule != "uniform"
        else jnp.tile(jnp.array([[1, 0, 3, 2]]), (rows, 1))
    )
    z_0 = (
        jnp.tile(jnp.array([[1, 0, 0, 7]]), (rows, 1))
        if schedule != "absorbing"
        else jnp.tile(jnp.array([[1, 0, 3, 7]]), (rows, 1))
    )
    t, back = (
        jnp.repeat(jnp.array([1, 2, 50, 99, 100]), 4),
        jnp.tile(jnp.array([0.0, 0.01, 0.5, 0.99]), 5),
    )
    for logits in (
        jnp.zeros((rows, 4, 50)),
        60 * jax.nn.one_hot(jnp.zeros((rows, 4), int), 50),
        60 * jax.nn.one_hot(z_0, 50),
    ):
        value, slope = jax.value_and_grad(
            lambda x: rate_and_auxiliary(coarse, x, z_0, z_t, t, back)[0].sum()
        )(logits)
        assert np.isfinite(value) and np.isfinite(slope).all() and value > -1e-3 * rows
