"""The bound in closed form against the dense one, explicit matrices, and the exact likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.diffusion import elbo, schedules

T = 6
SCHEDULES = ["paper", "released", "absorbing", "uniform", "hybrid"]
bound_term = jax.jit(elbo.bound_term, static_argnums=0)
closed = jax.jit(elbo.bound_and_auxiliary, static_argnums=0)


def cases(exact, k):
    """(logits, z_0, z_t, t) for every t and every pair of states that occurs: plain, confident and
    extreme logits.
    """
    rng, rows = np.random.default_rng(k), []
    for t in range(1, T + 1):
        q = exact.between(0, t)
        for z_0, z_t in np.argwhere(q[:k] > 0):
            rows.append((rng.normal(size=k), z_0, z_t, t))
            for mode, gap in (
                (z_0, 12),
                (min(z_t, k - 1), 12),
                (z_0, 60),
                (min(z_t, k - 1), 60),
                (k - 1, 30),
            ):
                rows.append((gap * (np.arange(k) == mode) - gap / 2, z_0, z_t, t))
    logits, z_0, z_t, t = map(np.array, zip(*rows))
    return tuple(
        map(jnp.asarray, (logits.astype(np.float32)[:, None], z_0[:, None], z_t[:, None], t))
    )


def by_matrices(exact, logits, z_0, z_t, t):
    """The bound and its gradient by the logits, in float64."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    each = exact.posteriors(z_t, t - 1, t)
    p *= each.sum(1) > 0
    p /= p.sum()
    true, model = each[z_0], p @ each
    on = true > 0
    slope = -(each[:, on] * true[on] / model[on]).sum(1)
    return (true[on] * np.log(true[on] / model[on])).sum(), p * (slope - p @ slope)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_closed_form_dense_form_and_matrices_agree(schedule, k, chain):
    process = getattr(schedules, schedule)(T, k)
    exact = chain(process)
    batch = cases(exact, k)
    want, slope = zip(
        *(
            by_matrices(exact, x[0].astype(float), a[0], b[0], t)
            for x, a, b, t in zip(*map(np.asarray, batch))
        )
    )
    want, slope = np.array(want), np.array(slope)

    def check(form):
        """The form's bound against `want`, its gradient against `slope`; returns what else it
        computes.
        """

        def total(x):
            bound, *rest = form(process, x, *batch[1:])
            return bound.sum(), (bound, *rest)

        (_, (bound, *rest)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(batch[0])
        np.testing.assert_allclose(bound[:, 0], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[:, 0], slope, rtol=1e-5, atol=1e-5)
        return rest

    check(lambda *args: (elbo.bound_term(*args),))
    (auxiliary,) = check(elbo.bound_and_auxiliary)
    logits, z_0 = np.asarray(batch[0][:, 0], np.float64), np.asarray(batch[1])
    want = np.logaddexp.reduce(logits, 1) - np.take_along_axis(logits, z_0, 1)[:, 0]
    np.testing.assert_allclose(auxiliary[:, 0], want, rtol=1e-5, atol=1e-5)


def test_released_at_full_size_agrees_with_the_dense_form():
    """2887 codes, T = 100, beta of 3e-10: where float32 would go first."""
    process, k = schedules.released(100, 2887), 2887
    rng = np.random.default_rng(0)
    t = np.array([1, 2, 50, 99, 100])
    z_0 = np.tile([[3, 5, 2886, 7]], (5, 1))
    z_t = np.tile([[k, 5, 11, k]], (5, 1))  # masked, kept, replaced, masked
    logits = rng.normal(size=(5, 4, k)).astype(np.float32) * 3
    logits[:, :3, 11] += 20
    bound = closed(process, logits, z_0, z_t, t)[0]
    np.testing.assert_allclose(
        bound, bound_term(process, logits, z_0, z_t, t), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bayes_optimal_denoiser_gives_the_exact_likelihood(schedule, chain):
    """With p(x | z_t) exact the bounds of all t and the prior's sum to -log p(x), in both forms."""
    process, p_data = getattr(schedules, schedule)(T, 4), np.array([0.5, 0.3, 0.15, 0.05])
    exact = chain(process)
    rows, weights = [], []
    for t in range(1, T + 1):
        q = exact.between(0, t)[:4]
        for x, z_t in np.argwhere(q > 0):
            posterior = p_data * q[:, z_t]
            rows.append((np.log(np.maximum(posterior / posterior.sum(), 1e-30)), x, z_t, t))
            weights.append(q[x, z_t] * (np.arange(4) == x))
    logits, z_0, z_t, t = map(np.array, zip(*rows))
    batch = logits.astype(np.float32)[:, None], z_0[:, None], z_t[:, None], t
    end = exact.between(0, T)[:4]
    prior = np.where(
        end > 0, end * np.log(np.where(end > 0, end, 1) / np.where(end > 0, p_data @ end, 1)), 0
    ).sum(1)
    for terms in (bound_term(process, *batch), closed(process, *batch)[0]):
        total = np.asarray(terms, np.float64)[:, 0] @ np.array(weights) + prior
        np.testing.assert_allclose(total, -np.log(p_data), rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prior_term_is_the_divergence_from_where_samplers_start(schedule, chain):
    for k in (2, 4):
        process = getattr(schedules, schedule)(T, k)
        live = process.unmasked[-1]
        start, end = np.append(np.full(k, live / k), 1 - live), chain(process).between(0, T)[0]
        on = end > 0
        np.testing.assert_allclose(
            elbo.prior_term(process), (end[on] * np.log(end[on] / start[on])).sum(), atol=1e-12
        )
    assert elbo.prior_term(schedules.paper(T, 4)) == pytest.approx(0, abs=1e-12)
    assert elbo.prior_term(schedules.released(100, 2887)) == pytest.approx(
        9e-6 * np.log(0.9 * 2887) + 1e-6 * np.log(0.1), rel=1e-3
    )


def test_only_the_logits_are_kept_for_the_backward_pass():
    b, n, k = 3, 5, 11
    process = schedules.paper(T, k)
    z = jnp.arange(b * n).reshape(b, n) % k
    t = jnp.array([1, 3, 6])

    def kept(form):
        loss = lambda x: form(process, x, z, jnp.where(z % 2 == 0, k, z), t)
        backward = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], jnp.ones((b, n, k)))
        return [
            x.shape for x in jax.tree.leaves(backward) if x.size >= b * n * k and x.dtype != bool
        ]

    assert kept(elbo.bound_and_auxiliary) == [(b, n, k)]
    assert (b, n, k + 1) in kept(elbo.bound_term)  # so such a tensor would be seen


@pytest.mark.parametrize("schedule", ["paper", "absorbing"])
def test_finite_for_any_logits(schedule):
    """Gradients too, at a difference of 2e4 between two logits."""
    process = getattr(schedules, schedule)(T, 3)
    z_0, z_t, t = jnp.array([[0, 1, 2, 0]]), jnp.array([[3, 1, 2, 1]]), jnp.array([2])
    logits = jnp.array([[[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 0, -1e4], [-1e4, 1e4, 1e4]]])
    loss = lambda x: sum(y.sum() for y in elbo.bound_and_auxiliary(process, x, z_0, z_t, t))
    value, slope = jax.jit(jax.value_and_grad(loss))(logits)
    assert np.isfinite(value) and np.isfinite(slope).all()
