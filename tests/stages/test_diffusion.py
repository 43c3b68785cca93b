"""The denoiser's losses: times by importance, dropped captions, online tokens, and expectations
taken by enumeration.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers.diffusion_stage import CODEC, IDS, Z_0, K, N, T, batch, evaluate, make, tile
from vqd_jax.diffusion.elbo import bound_term
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.stages import jitted
from vqd_jax.stages.diffusion import DiffusionStage
from vqd_jax.stages.importance import LossAwareTimes
from vqd_jax.stages.token_stage import Conditioning

THREE_CALLS = Ancestral(calls=3)
SKEWED = LossAwareTimes(square=jnp.array([9.0, 16.0, 0.01, 1.0]), count=jnp.full(T, 20.0))


def without_head(params):
    """Every code equally likely, whatever comes in: -log p(x_0) is log K."""
    denoiser = params["denoiser"] | {
        "head": jax.tree.map(jnp.zeros_like, params["denoiser"]["head"])
    }
    return params | {"denoiser": denoiser}


# ---- the history of the bound


def test_history_is_a_moving_average_for_each_time():
    rng, square, count = np.random.default_rng(0), np.zeros(T), np.zeros(T)
    history = LossAwareTimes.empty(T)
    for _ in range(6):
        t, bound = rng.integers(1, T, 5), rng.gamma(2, size=5)  # t = T never occurs
        for i in range(1, T + 1):
            mine = bound[t == i]
            if len(mine):
                square[i - 1] = (
                    0.9 ** len(mine) * square[i - 1]
                    + (1 - 0.9 ** len(mine)) * np.square(mine).mean()
                )
                count[i - 1] += len(mine)
        history = history.update(jnp.asarray(t), jnp.asarray(bound, jnp.float32), None)
        np.testing.assert_allclose(history.square, square, rtol=1e-5)
        np.testing.assert_array_equal(history.count, count)
    assert history.count[T - 1] == 0


def test_one_occurrence_moves_the_average_by_a_tenth():
    history = LossAwareTimes(square=jnp.array([1.0, 2.0]), count=jnp.ones(2)).update(
        jnp.array([2]), jnp.array([3.0]), None
    )
    np.testing.assert_allclose(history.square, [1.0, 0.9 * 2 + 0.1 * 9], rtol=1e-6)


def test_times_are_uniform_until_each_was_drawn_more_than_ten_times():
    square = jnp.array([9.0, 16.0, 0.01, 1.0])
    for last, flat in ((10, True), (11, False)):
        p = LossAwareTimes(square=square, count=jnp.array([50.0, 50, 50, last])).probabilities()
        want = (
            np.sqrt(np.array([16.0, 16.0, 0.01, 1.0]) + 1e-10) + 1e-4
        )  # t = 1 takes the weight of t = 2
        np.testing.assert_allclose(p, np.full(4, 0.25) if flat else want / want.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        LossAwareTimes(square=jnp.zeros(1), count=jnp.full(1, 99.0)).probabilities(), [1.0]
    )


def test_devices_share_one_history():
    t, bound = jnp.array([1, 2, 2, 4, 1, 1, 3, 2]), jnp.arange(1.0, 9.0)
    want = SKEWED.update(t, bound, None)
    update_extra = lambda h, t, bound: h.update(t, bound, "batch")
    got = jax.pmap(update_extra, axis_name="batch", in_axes=(None, 0, 0))(
        SKEWED, t.reshape(4, 2), bound.reshape(4, 2)
    )
    np.testing.assert_allclose(got.square, np.tile(want.square, (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(got.count, np.tile(want.count, (4, 1)))


# ---- the loss


@pytest.fixture(scope="module")
def exact(params, chain):
    """For one image, for every t and every z_t: q(z_t | z_0), the bound, -log p(z_0), means over
    tokens; float64 (T, states).
    """
    stage, states = make(), np.array(list(itertools.product(range(K + 1), repeat=N)))
    matrices, rows, q, bound, nll = chain(stage.process), len(states), [], [], []

    @jax.jit
    def at(t):
        logits = stage.predict(
            params, jnp.asarray(states), t, tile(IDS, rows), jnp.zeros(rows, bool)
        )
        return jax.nn.log_softmax(logits), bound_term(
            stage.process, logits, tile(Z_0, rows), jnp.asarray(states), t
        ).mean(-1)

    for t in range(1, T + 1):
        log_p, term = (np.asarray(x, np.float64) for x in at(jnp.full(rows, t)))
        q.append(np.prod([matrices.between(0, t)[Z_0[i], states[:, i]] for i in range(N)], axis=0))
        bound.append(term)
        nll.append(-log_p[:, np.arange(N), Z_0].mean(-1))
    return tuple(map(np.array, (q, bound, nll)))


@pytest.mark.parametrize("importance", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_is_unbiased(importance, params, exact):
    """The mean over many rows of one image is the sum over t of expectations over z_t, whatever the
    times' weights.
    """
    stage, rows, (q, bound, nll) = make(importance=importance), 30_000, exact
    each = bound + 0.1 * nll
    want = (q * each).sum()
    p = np.asarray(SKEWED.probabilities(), np.float64) if importance else np.full(T, 1 / T)
    p /= p.sum()
    error = np.sqrt(((q * each**2).sum(1) / p).sum() - want**2) / np.sqrt(rows)
    assert (
        abs(T * (p @ (q * each).sum(1)) - want) > 20 * error or not importance
    )  # without the correction it would show
    data = {"text": tile(IDS, rows), "tokens": tile(Z_0, rows)}
    loss, (extra, metrics) = evaluate(stage, params, data, SKEWED)
    assert abs(float(loss) - want) < 4.5 * error
    np.testing.assert_allclose(metrics["bound"], (q * bound).sum(), rtol=0.05)
    np.testing.assert_allclose(metrics["auxiliary"], (q * nll).sum() / T, rtol=0.05)
    drawn = np.asarray(extra.count - SKEWED.count, np.float64)
    p = np.asarray(p, np.float64)
    assert stats.chisquare(drawn, p / p.sum() * drawn.sum()).pvalue > 1e-4
    np.testing.assert_allclose(
        extra.square[0], (q * bound**2)[0].sum(), rtol=0.1
    )  # by now the mean square at t = 1


@pytest.mark.parametrize("adaptive", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_auxiliary_term_and_its_adaptive_weight(adaptive, params):
    """Without a head it is log K for every token, times 2 - (t - 1) / T if adaptive; the counts
    tell which t were drawn.
    """
    data, stage = batch(16), make(auxiliary=0.5, adaptive_auxiliary=adaptive)
    loss, (extra, metrics) = evaluate(stage, without_head(params), data)
    t = np.arange(1, T + 1)
    strength = 2 - (t - 1) / T if adaptive else np.ones(T)
    want = 0.5 * T * np.log(K) * np.asarray(extra.count) @ strength / 16
    np.testing.assert_allclose(loss - metrics["bound"], want, rtol=1e-4)
    np.testing.assert_allclose(metrics["auxiliary"], np.log(K), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], (data["tokens"] == 0).mean(), rtol=1e-6
    )  # of equals, the first


def test_dropped_captions_become_the_null(params):
    data, other = batch(6), batch(6) | {"text": batch(6, seed=5)["text"]}
    always, never = make(drop_caption=1.0), make()
    (dropped, _), gradient = evaluate(always, params, data, gradient=True)
    assert dropped == evaluate(always, params, other, gradient=True)[0][0]
    assert np.asarray(gradient["conditioner"]["null"]).any()
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient["conditioner"]["encoder"]))
    (kept, _), gradient = evaluate(never, params, data, gradient=True)
    assert kept != evaluate(never, params, other, gradient=True)[0][0]
    assert not np.asarray(gradient["conditioner"]["null"]).any()


def test_the_share_of_dropped_captions(params, monkeypatch):
    rows, seen = 4000, []

    def spy(self, params, z_t, t, ids, drop, **dropout):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), drop)
        return jnp.zeros((*z_t.shape, K))

    monkeypatch.setattr(DiffusionStage, "predict", spy)
    evaluate(make(drop_caption=0.3), params, batch(rows))
    jax.effects_barrier()
    share = np.concatenate(seen)[:rows].mean()
    assert abs(share - 0.3) < 4.5 * np.sqrt(0.21 / rows)


@pytest.mark.slow  # 11 s
def test_encoding_while_training_equals_cached_tokens(params):
    image = jnp.asarray(np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    codec_params, codes = jax.jit(CODEC.init)(jax.random.key(0), {"image": image})
    codec = CODEC.weights_of(codec_params, codes)
    tokens = jax.jit(CODEC.encode)(codec, image)
    assert len(np.unique(tokens)) > 1
    text = batch(5)["text"]
    cached = evaluate(make(), params, {"text": text, "tokens": tokens})
    online = evaluate(make(), params, {"text": text, "image": image}, frozen=codec)
    jax.tree.map(np.testing.assert_array_equal, cached, online)


def test_dropout_acts_with_a_key_only(params):
    data, stage = batch(2), make(dropout=0.5)
    args = data["tokens"], jnp.array([1, 3]), data["text"], jnp.zeros(2, bool)
    run = jax.jit(lambda stage, *dropout: stage.predict(params, *args, *dropout), static_argnums=0)
    np.testing.assert_array_equal(run(stage), run(make()))
    assert (run(stage, jax.random.key(0), jnp.arange(2)) != run(stage)).any()


# ---- the bound of held-out images


@pytest.mark.parametrize("draws", [pytest.param(1, marks=pytest.mark.slow), T])
def test_the_estimate_of_the_bound_is_unbiased(draws, params, exact):
    rows, (q, bound, _) = 4000, exact
    want, each = (q * bound).sum(), T * bound
    got = np.asarray(
        jitted.bound(make(), params, jax.random.key(3), tile(Z_0, rows), tile(IDS, rows), draws)
    )
    between, within = (
        (q * each**2).sum() / T - want**2,
        ((q * each**2).sum(1) - (q * each).sum(1) ** 2).sum() / T**2,
    )
    variance = between if draws == 1 else within  # with T draws every t comes up once
    assert got.shape == (rows,) and abs(got.mean() - want) < 4.5 * np.sqrt(variance / rows)
    np.testing.assert_allclose(got.var(), variance, rtol=0.3)


@pytest.mark.slow  # 3 s
def test_the_estimate_of_a_row_does_not_depend_on_the_others(params):
    run = lambda z, ids: jitted.bound(make(), params, jax.random.key(0), z, ids, 2)
    data, other = batch(5), batch(5, seed=7)
    mixed = {k: jnp.concatenate([data[k][:2], other[k][2:]]) for k in data}
    a, b = (run(x["tokens"], x["text"]) for x in (data, mixed))
    np.testing.assert_allclose(a[:2], b[:2], rtol=1e-5)
    assert (a[2:] != b[2:]).all()


# ---- sampling


@pytest.fixture(scope="module")
def sample(params):
    stage = make()

    def run(
        ids,
        scale=1.0,
        temperature=1.0,
        top_p=1.0,
        *,
        guided=False,
        truncated=False,
        seed=0,
        negative=None,
        second=None,
        weight=0.0,
        sampler=THREE_CALLS,
        **static_guidance,
    ):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(ids)))
        rows = [ids, *([] if second is None else [second]), ids if negative is None else negative]
        drop = jnp.zeros((len(rows), len(ids)), bool).at[-1].set(negative is None)
        scales = jnp.full((len(rows) - 1, len(ids)), scale).at[1:].mul(weight)
        dynamic = {"scales": scales, "temperature": temperature, "top_p": top_p}
        return stage.sample(
            params,
            keys,
            Conditioning(jnp.stack(rows), drop),
            dynamic,
            sampler,
            StaticGuidance(guided=guided, truncated=truncated, **static_guidance),
        )

    return jax.jit(
        run, static_argnames=("guided", "truncated", "ramp", "guidance_below", "top_k", "sampler")
    )


def test_samples_are_codes_and_depend_on_caption_and_noise(sample):
    ids = batch(64)["text"]
    tokens = sample(ids)
    assert tokens.shape == (64, N) and set(np.unique(tokens)) == set(range(K))
    assert (sample(ids, seed=1) != tokens).any() and (sample(ids[::-1]) != tokens).any()
    np.testing.assert_array_equal(sample(ids.at[3:].set(1))[:3], tokens[:3])


def test_guidance_of_one_is_no_guidance_and_of_zero_no_caption(sample):
    ids, other = batch(64)["text"], batch(64, seed=4)["text"]
    np.testing.assert_array_equal(sample(ids, 1.0, guided=True), sample(ids))
    np.testing.assert_array_equal(sample(ids, 0.0, guided=True), sample(other, 0.0, guided=True))
    assert (sample(ids, 3.0, guided=True) != sample(other, 3.0, guided=True)).any()


@pytest.mark.slow  # 4 s
def test_truncation_and_temperature_reach_the_samples(sample):
    ids = batch(64)["text"]
    np.testing.assert_array_equal(sample(ids, top_p=1.0, truncated=True), sample(ids))
    cold, narrow = sample(ids, temperature=1e-4), sample(ids, top_p=1e-6, truncated=True)
    np.testing.assert_array_equal(cold, narrow)  # both leave the mode alone
    assert (cold != sample(ids)).any()


def test_a_negative_prompt_takes_the_place_of_the_null(sample):
    ids, other = batch(64)["text"], batch(64, seed=4)["text"]
    np.testing.assert_array_equal(sample(ids, 0.0, guided=True, negative=other), sample(other))
    assert (sample(ids, 3.0, guided=True, negative=other) != sample(ids, 3.0, guided=True)).any()


@pytest.mark.slow  # five programs; inference/test_pipeline.py blends prompts, too
def test_prompts_blend_by_their_weights(sample):
    ids, other = batch(64)["text"], batch(64, seed=4)["text"]
    np.testing.assert_array_equal(
        sample(ids, 2.0, guided=True, second=other), sample(ids, 2.0, guided=True)
    )
    both = sample(ids, 2.0, guided=True, second=other, weight=1.0)
    assert (both != sample(ids, 2.0, guided=True)).any() and (
        both != sample(other, 2.0, guided=True)
    ).any()
    assert (
        sample(ids, second=other, weight=1.0) != sample(ids)
    ).any()  # the blend without guidance


@pytest.mark.slow  # six programs
def test_an_interval_skips_the_passes_outside_of_it(sample, params):
    """Guidance that never acts is none; and the program without it does not read the null states at
    all.
    """
    ids = batch(64)["text"]
    np.testing.assert_array_equal(sample(ids, 3.0, guided=True, guidance_below=0.0), sample(ids))
    assert (
        sample(ids, 3.0, guided=True, guidance_below=0.6) != sample(ids, 3.0, guided=True)
    ).any()
    assert (sample(ids, 3.0, guided=True, ramp=True) != sample(ids, 3.0, guided=True)).any()
    cost = lambda **kw: (
        sample.lower(ids, 3.0, guided=True, sampler=Ancestral(calls=T), **kw)
        .compile()
        .cost_analysis()["flops"]
    )
    assert cost(guidance_below=0.0) < 0.7 * cost()  # the two share the first self-attention


@pytest.mark.slow  # samplers/test_guidance.py tests the filter
def test_top_k_of_one_is_the_mode(sample):
    ids = batch(64)["text"]
    np.testing.assert_array_equal(sample(ids, top_k=1), sample(ids, temperature=1e-4))


# ---- weights


@pytest.mark.slow  # 3 s
def test_initial_parameters_and_weights(params):
    stage = make()
    fresh, history = jax.jit(stage.init)(jax.random.key(0), batch(4))
    assert jax.tree.structure(fresh) == jax.tree.structure(params) and set(fresh) == {
        "denoiser",
        "conditioner",
    }
    assert not history.square.any() and not history.count.any() and history.count.shape == (T,)
    weights = stage.weights_of(fresh, SKEWED)
    back, empty = stage.from_weights(weights)
    jax.tree.map(np.testing.assert_array_equal, back, fresh)
    jax.tree.map(np.testing.assert_array_equal, empty, history)


def test_a_stage_is_a_static_argument():
    """Equal settings are one compiled program."""
    assert make() == make() and hash(make()) == hash(make()) and make() != make(auxiliary=0.2)
    assert dataclasses.replace(make(), codec=CODEC) == make()
