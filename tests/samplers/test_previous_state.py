"""benchmarks/previous_state.py: the bound against explicit matrices, the sampler against the chain
that it stands for, and the stage.
"""

import dataclasses
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers import ROOT
from helpers.diffusion_stage import IDS, Z_0, batch, evaluate, make, tile
from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.base import Constraint, sample_loop
from vqd_jax.samplers.guidance import StaticGuidance, apply_temperature, guide
from vqd_jax.stages.token_stage import Conditioning

pytestmark = pytest.mark.slow  # a benchmark carries these models, not the library

spec = importlib.util.spec_from_file_location(
    "previous_state", ROOT / "benchmarks/previous_state.py"
)
previous_state = importlib.util.module_from_spec(spec)
spec.loader.exec_module(previous_state)
bound_of_previous, log_previous = previous_state.bound_of_previous, previous_state.log_previous

K, T, N = 3, 4, 4
SCHEDULES = ["paper", "absorbing"]


def stage_like(stage):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "diffusion_stage", lambda config, tokenizer: stage)
        return previous_state.previous_state_stage(None, None)


@pytest.fixture(scope="module")
def stage():
    return stage_like(make(auxiliary=0.0))


@pytest.fixture(scope="module")
def params(stage):
    """Large enough that the logits depend on everything."""
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), batch(1))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


def masks_possible(z_t, t):
    return z_t == K and t > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_divergence_of_the_matrices(schedule, chain):
    """And its gradient by the logits; for every t and every pair of states that occurs."""
    process = getattr(schedules, schedule)(T, K)
    exact, rng, rows, want, slopes = chain(process), np.random.default_rng(0), [], [], []
    for t in range(1, T + 1):
        for z_0, z_t in np.argwhere(exact.between(0, t)[:K] > 0):
            for scale in (1, 8):
                logits = scale * rng.normal(size=K + 1)
                on = np.arange(K + 1) < K + masks_possible(z_t, t)
                p = np.where(on, np.exp(logits), 0) / np.exp(logits)[on].sum()
                true = exact.posteriors(z_t, t - 1, t)[z_0]
                assert not true[~on].any()  # what is left out has no chance
                some = true > 0
                want.append((true[some] * np.log(true[some] / p[some])).sum())
                slopes.append(p - true)
                rows.append((logits, z_0, z_t, t))
    logits, z_0, z_t, t = map(np.array, zip(*rows))
    logits, z_0, z_t = (
        jnp.asarray(logits, jnp.float32)[:, None],
        jnp.asarray(z_0)[:, None],
        jnp.asarray(z_t)[:, None],
    )

    def total(x):
        bound = bound_of_previous(process, x, z_0, z_t, jnp.asarray(t))
        return bound.sum(), bound

    (_, bound), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    np.testing.assert_allclose(bound[:, 0], np.array(want, float), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], np.array(slopes, float), atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_true_reverse_chain_gives_the_exact_likelihood(schedule, chain):
    """With p(z_{t-1} | z_t) by Bayes' rule the bounds of all t and the prior's sum to -log p(x)."""
    process, p_data = getattr(schedules, schedule)(T, K), np.array([0.6, 0.3, 0.1])
    exact, rows, weights = chain(process), [], []
    for t in range(1, T + 1):
        before, q = p_data @ exact.between(0, t - 1)[:K], exact.between(0, t)[:K]
        for x, z_t in np.argwhere(q > 0):
            joint = before * exact.between(t - 1, t)[:, z_t]
            rows.append((np.log(np.maximum(joint / joint.sum(), 1e-30)), x, z_t, t))
            weights.append(q[x, z_t] * (np.arange(K) == x))
    logits, z_0, z_t, t = map(np.array, zip(*rows))
    terms = jax.jit(bound_of_previous, static_argnums=0)(
        process, logits.astype(np.float32)[:, None], z_0[:, None], z_t[:, None], t
    )
    end = exact.between(0, T)[:K]
    prior = np.where(
        end > 0, end * np.log(np.where(end > 0, end, 1) / np.where(end > 0, p_data @ end, 1)), 0
    ).sum(1)
    np.testing.assert_allclose(
        np.asarray(terms, np.float64)[:, 0] @ np.array(weights) + prior, -np.log(p_data), rtol=1e-4
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sampler_draws_from_the_chain_of_its_predictions(schedule):
    """A table of logits by time and state, whose products are the distribution of the result."""
    process, rows = getattr(schedules, schedule)(T, K), 20_000
    table = jnp.asarray(np.random.default_rng(1).normal(size=(T + 1, K + 1, K + 1)), jnp.float32)
    denoise = lambda z, t: log_previous(process, table[t[:, None], z], z, t)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(rows))
    sampler = previous_state.PreviousStateSampler()
    end, states = jax.jit(
        lambda ks: sample_loop(
            sampler, ks, process, denoise, sampler.start(ks, process, 2), trace=True
        )
    )(keys)
    assert states.shape == (T, rows, 2) and (np.asarray(end) < K).all()
    p = np.append(np.full(K, process.unmasked[-1] / K), 1 - process.unmasked[-1])
    for t, seen in zip(range(T, 0, -1), states):
        z = jnp.arange(K + 1)[:, None]
        p = p @ np.exp(
            np.asarray(
                log_previous(process, table[t][:, None], z, jnp.full(K + 1, t))[:, 0], np.float64
            )
        )
        on = p * rows > 1
        counts = np.bincount(np.asarray(seen).ravel(), minlength=K + 1)
        assert counts[p < 1e-12].sum() == 0
        assert stats.chisquare(counts[on], p[on] / p[on].sum() * counts[on].sum()).pvalue > 1e-4
    known = Constraint(mask=jnp.array([[True, False]] * 3), tokens=jnp.full((3, 2), 2))
    kept = jax.jit(
        lambda ks: sample_loop(
            sampler, ks, process, denoise, sampler.start(ks, process, 2), constraint=known
        )
    )(keys[:3])
    np.testing.assert_array_equal(kept[:, 0], 2)


def test_the_loss_is_unbiased(stage, params, chain):
    """The mean over many rows of one image is the sum over t of expectations over all states of all
    its tokens.
    """
    states, rows = np.array(list(itertools.product(range(K + 1), repeat=N))), 30_000
    exact, count = chain(stage.process), (K + 1) ** N

    @jax.jit
    def at(t):
        logits = stage.predict(
            params, jnp.asarray(states), t, tile(IDS, count), jnp.zeros(count, bool)
        )
        return log_previous(stage.process, logits, jnp.asarray(states), t)

    want = square = 0.0
    for t in range(1, T + 1):
        log_p, q = np.asarray(at(jnp.full(count, t)), np.float64), np.ones(count)
        bound = np.zeros(count)
        for i in range(N):
            q *= exact.between(0, t)[Z_0[i], states[:, i]]
            true = np.array([exact.posteriors(z, t - 1, t)[Z_0[i]] for z in range(K + 1)], float)[
                states[:, i]
            ]
            bound += (true * (np.log(np.maximum(true, 1e-300)) - log_p[:, i])).sum(1) / N
        want, square = want + (q * bound).sum(), square + (q * bound**2).sum()
    error = np.sqrt((T * square - want**2) / rows)
    loss, (_, metrics) = evaluate(
        stage, params, {"text": tile(IDS, rows), "tokens": tile(Z_0, rows)}
    )
    assert abs(float(loss) - want) < 4.5 * error and error < 0.05 * want
    assert metrics["auxiliary"] == 0


def test_guidance_and_temperature_act_on_the_codes_and_leave_the_chance_of_mask(stage, params):
    ids = jnp.asarray(batch(3)["text"])
    z, t = jnp.asarray(np.random.default_rng(0).integers(0, K + 1, (3, N))), jnp.array([1, 2, 4])
    drop = jnp.array([[False] * 3, [True] * 3])
    network = lambda dropped: stage.predict(params, z, t, ids, jnp.full(3, dropped))
    scales = jnp.full((1, 3), 2.0)
    ask = lambda guided, temperature: stage.denoise(
        params,
        Conditioning(jnp.stack([ids, ids]), drop),
        {"scales": scales if guided else scales / 2, "temperature": temperature, "top_p": 1.0},
        StaticGuidance(guided=guided),
        guided=guided,
    )(z, t)
    plain = log_previous(stage.process, network(False), z, t)
    np.testing.assert_allclose(ask(False, 1.0), plain, atol=1e-4)
    codes = apply_temperature(
        guide(network(False)[None, ..., :K], network(True)[..., :K], scales), 0.7
    )
    got = ask(True, 0.7)
    np.testing.assert_allclose(got[..., K], plain[..., K], atol=1e-5)
    np.testing.assert_allclose(
        jax.nn.log_softmax(got[..., :K]), jax.nn.log_softmax(codes), atol=1e-4
    )
    np.testing.assert_allclose(jnp.exp(got).sum(-1), 1, atol=1e-5)
    assert (np.exp(plain[..., K]) > 0.01).any() and (np.abs(got - plain)[..., :K] > 0.01).any()
    np.testing.assert_allclose(
        previous_state.with_codes(plain, network(False)[..., :K]), plain, atol=1e-4
    )


def test_the_stage_samples_with_its_own_sampler_and_refuses_an_auxiliary_loss(stage, params):
    """Whatever sampler it is asked for: every state is one that z_{t-1} can have."""
    keys = jax.random.split(jax.random.key(0), 5)
    conditions = Conditioning(
        jnp.asarray(batch(5)["text"])[None].repeat(2, 0), jnp.array([[False] * 5, [True] * 5])
    )
    dynamic = {"scales": jnp.full((1, 5), 2.0), "temperature": 1.0, "top_p": 1.0}
    run = jax.jit(
        lambda params: stage.sample(
            params,
            keys,
            conditions,
            dynamic,
            Ancestral(calls=2),
            StaticGuidance(guided=True),
            trace=True,
        )
    )
    end, states = run(params)
    assert stage.calls(Ancestral(calls=2)) == T == len(states)
    assert (np.asarray(end) < K).all() and len(np.unique(end)) > 1
    for before, after in zip(states, states[1:]):
        assert (np.asarray(after)[np.asarray(before) != K] != K).all()
    with pytest.raises(UserError, match="needs diffusion_loss.auxiliary=0"):
        dataclasses.replace(stage, weights=dataclasses.replace(stage.weights, auxiliary=0.1))


def test_stages_are_of_this_kind_within_the_context():
    with previous_state.diffusion_predicts_previous_state():
        assert build.TOKEN_STAGES["diffusion"] is previous_state.previous_state_stage
    assert build.TOKEN_STAGES["diffusion"] is build.diffusion_stage
