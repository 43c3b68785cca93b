"""Stages with two codes a position: the codec's losses by hand, the bound of a perfect denoiser
against exact matrices, sampling, the autoregressive baseline and adapters.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers import diffusion_stage
from helpers.diffusion_stage import CODEC, IDS, tile
from vqd_jax.diffusion import schedules
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.conditioning import NoConditioner
from vqd_jax.runtime.rows import Rows
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.diffusion import DiffusionStage
from vqd_jax.stages.importance import LossAwareTimes
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.token_stage import Conditioning

G, K, L = 2, 3, 4  # groups, codes, positions of a 2 x 2 grid


# ---- the codec

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


def codec(update="ema", **weights):
    book = Codebook(codes=K, width=2, groups=G, updates=update, restart_every=0)
    weights = dataclasses.replace(CODEC.weights, **weights)
    return dataclasses.replace(CODEC, codebook=book, weights=weights)


def quantised(params, codes):
    """(z, residual of the second group, indices (G, 3, L), the codes' vectors (G, 3, L, 2))."""
    x = jnp.asarray(IMAGES, jnp.float32) / 127.5 - 1
    encode = jax.jit(lambda p: CODEC.model.apply({"params": p}, x, method="encode"))
    z = np.asarray(encode(params["vqvae"]), np.float64).reshape(3, L, 2)
    tables = np.asarray(codes, np.float64).reshape(G, K, 2)
    nearest = lambda table, z: np.square(z[..., None, :] - table).sum(-1).argmin(-1)
    first = nearest(tables[0], z)
    rest = z - tables[0][first]
    second = nearest(tables[1], rest)
    return z, rest, np.stack([first, second]), np.stack([tables[0][first], tables[1][second]])


@pytest.fixture(scope="module")
def trained_codec():
    """Parameters of the codec, and codes that differ."""
    params, extra = jax.jit(codec().init)(jax.random.key(0), {"image": IMAGES})
    table = jnp.asarray(np.random.default_rng(1).normal(size=(G * K, 2)) * 0.3, jnp.float32)
    return params, dataclasses.replace(extra, vectors=table, total=2 * table)


def test_tokens_are_the_codes_of_one_group_after_the_other(trained_codec):
    params, extra = trained_codec
    weights = codec().weights_of(params, extra)
    _, _, index, vectors = quantised(params, extra.vectors)
    tokens = jax.jit(codec().encode)(weights, IMAGES)
    np.testing.assert_array_equal(tokens, np.concatenate(index, axis=1))
    assert all(len(np.unique(each)) > 1 for each in index)
    total = jnp.asarray(vectors.sum(0).reshape(3, 2, 2, 2), jnp.float32)
    decode = jax.jit(lambda p, z: CODEC.model.apply({"params": p}, z, method="decode"))
    want = decode(params["vqvae"], total)
    paint = jax.jit(codec().paint)
    np.testing.assert_allclose(paint(weights, tokens), want, rtol=1e-4, atol=1e-5)
    coarse = tokens.at[:, L:].set(K)  # [MASK]: the coarse codes alone
    want = decode(params["vqvae"], jnp.asarray(vectors[0].reshape(3, 2, 2, 2), jnp.float32))
    np.testing.assert_allclose(paint(weights, coarse), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", [pytest.param("ema", marks=pytest.mark.slow), "gradient"])
def test_each_group_of_codes_learns_from_its_own_residuals(update, trained_codec):
    params, extra = trained_codec
    stage = codec(update, commitment=0.25)
    params = dict(params) | ({"codes": extra.vectors} if update == "gradient" else {})

    def loss(params):
        data, here = {"image": IMAGES}, Rows.of_device(3)
        value, (aux, metrics) = stage.loss(
            params, extra, {}, data, jax.random.key(1), jnp.int32(0), here
        )
        updated, others = stage.update_extra(extra, aux, jax.random.key(1), jnp.int32(0), None)
        return value, (updated, metrics | others)

    (value, (updated, metrics)), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    z, rest, index, vectors = quantised(params, extra.vectors)
    np.testing.assert_allclose(
        metrics["commitment"], np.square(z - vectors.sum(0)).mean(), rtol=1e-4
    )
    of_group = lambda g: np.bincount(index[g].ravel(), minlength=K)
    use = [of_group(g) / index[g].size for g in range(G)]
    np.testing.assert_allclose(metrics["codes_in_use"], np.mean([p > 0 for p in use]), rtol=1e-6)
    perplexity = [np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) for p in use]
    np.testing.assert_allclose(metrics["perplexity"], np.mean(perplexity), rtol=1e-5)
    count = 0.99 * np.ones(G * K) + 0.01 * np.concatenate([of_group(g) for g in range(G)])
    np.testing.assert_allclose(updated.count, count, rtol=1e-5)
    total = 0.99 * np.asarray(extra.total, np.float64).reshape(G, K, 2)
    for g, inputs in enumerate((z, rest)):
        for k in range(K):
            total[g, k] += 0.01 * inputs[index[g] == k].sum(0)
    np.testing.assert_allclose(updated.total, total.reshape(-1, 2), rtol=1e-4, atol=1e-5)
    if update == "ema":
        assert "codebook" not in metrics and (updated.vectors != extra.vectors).any()
        return
    errors = np.stack([vectors[0] - z, vectors[1] - rest])
    np.testing.assert_allclose(metrics["codebook"], np.square(errors).sum(0).mean(), rtol=1e-4)
    want = np.zeros((G, K, 2))
    for g, k in itertools.product(range(G), range(K)):
        want[g, k] = 2 * errors[g][index[g] == k].sum(0) / z.size
    np.testing.assert_allclose(slope["codes"], want.reshape(-1, 2), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        value,
        metrics["l1"] + 0.25 * metrics["commitment"] + metrics["codebook"],
        rtol=1e-5,
    )


# ---- the bound

T, STATES = 3, np.array([*itertools.product(range(3), repeat=4)])  # two codes, 2 is [MASK]
DATA = STATES[(STATES != 2).all(1)]


def p_data():
    """Fine codes (the last two tokens) follow their coarse ones."""
    fine = np.where(DATA[:, 2:] == DATA[:, :2], [0.9, 0.8], [0.1, 0.2]).prod(1)
    return np.array([[0.4, 0.1], [0.2, 0.3]])[DATA[:, 0], DATA[:, 1]] * fine


def exact(chain, process):
    """(log p(x_i | z_t) for each t and state (T + 1, 81, 4, 2), expected bound of each x (16,))."""
    matrices, p = chain(process), p_data()
    log_p, bound = np.zeros((T + 1, len(STATES), 4, 2)), np.zeros(len(DATA))
    for t in range(1, T + 1):
        q = matrices.between(0, t)[:2].astype(float)
        forward = q[DATA[:, None], STATES[None]].prod(-1)  # q(z_t | x)
        both = (p[:, None] * forward).T
        of_code = np.stack([both @ (DATA == code) for code in range(2)], axis=-1)
        mass = both.sum(1)[:, None, None]
        marginal = np.divide(of_code, mass, out=np.full_like(of_code, 0.5), where=mass > 0)
        log_p[t] = np.log(np.maximum(marginal, 1e-30))
        posteriors = [matrices.posteriors(z, t - 1, t).astype(float) for z in range(3)]
        for z, x in itertools.product(range(len(STATES)), range(len(DATA))):
            if not forward[x, z]:
                continue
            for i in range(4):
                each = posteriors[STATES[z, i]]
                true, model = each[DATA[x, i]], marginal[z, i] @ each
                on = true > 0
                kl = (true[on] * np.log(true[on] / model[on])).sum()
                bound[x] += forward[x, z] * kl
    return log_p, bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perfect(DiffusionStage):
    """Knows the exact marginals given z_t."""

    def predict(self, params, z_t, t, ids, drop, **dropout):
        return params["table"][t, z_t @ 3 ** jnp.arange(3, -1, -1)]


@pytest.mark.parametrize("schedule", [pytest.param("absorbing", marks=pytest.mark.slow), "paper"])
def test_the_bound_of_a_perfect_denoiser(schedule, chain):
    """Every time in turn, 1,500 times for each image, against the expectation over all z_t; with
    the prior's term it is at least -log p.
    """
    process = getattr(schedules, schedule)(T, 2)
    log_p, want = exact(chain, process)
    plain = diffusion_stage.make()
    denoiser = plain.denoiser.clone(codes=2, groups=2, grid=(1, 2), T=T, parent=None)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    stage = Perfect(**fields | {"process": process, "denoiser": denoiser})
    assert stage.tokens == 4
    rows = np.repeat(DATA, 1_500, axis=0)
    nats = jitted.bound(
        stage,
        {"table": jnp.asarray(log_p, jnp.float32)},
        jax.random.key(0),
        jnp.asarray(rows, jnp.int32),
        jnp.zeros((len(rows), 3), jnp.int32),
        T,
    )
    nats = 4 * np.asarray(nats, np.float64).reshape(len(DATA), -1)
    error = nats.std(1) / np.sqrt(nats.shape[1])
    assert (np.abs(nats.mean(1) - want) < 4 * error + 1e-4).all()
    end, p = chain(process).between(0, T)[:2].astype(float), p_data()
    prior = 0.0
    for x in range(2):  # of a token with an even prior over the codes
        on = end[x] > 0
        prior += (
            p[(DATA[:, 0] == x)].sum() * (end[x][on] * np.log(end[x][on] / end.mean(0)[on])).sum()
        )
    entropy = -(p * np.log(p)).sum()
    assert p @ want + 4 * prior > entropy


# ---- the denoiser's stage


def stage(**fields):
    plain = diffusion_stage.make()
    denoiser = plain.denoiser.clone(groups=G, parent=None)
    return dataclasses.replace(plain, denoiser=denoiser, codec=codec(), **fields)


def random_params(stage, data):
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), data)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


def test_a_step_on_images_learns_every_table_and_head(trained_codec):
    """Images are encoded on the way; each group has a gradient of its own."""
    data = {"image": IMAGES, "text": tile(IDS, 3)}
    diffusion, weights = stage(), codec().weights_of(*trained_codec)
    params = random_params(diffusion, data)

    def loss(params):
        history, here = LossAwareTimes.empty(4), Rows.of_device(3)
        value, (_, metrics) = diffusion.loss(
            params, history, weights, data, jax.random.key(1), jnp.int32(0), here
        )
        return value, metrics

    (value, metrics), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value) and set(metrics) == {"loss", "bound", "auxiliary", "accuracy"}
    kernel = np.asarray(slope["denoiser"]["head"]["kernel"]).reshape(8, G, K)
    tables = np.asarray(slope["denoiser"]["tokens"]["embedding"]).reshape(G, K + 1, 8)
    assert (np.abs(kernel).max((0, 2)) > 0).all() and (np.abs(tables).max((1, 2)) > 0).all()


def test_sampling_draws_coarse_codes_first_whatever_the_sampler_was_told():
    diffusion = stage(process=schedules.absorbing(4, K))
    params = random_params(diffusion, {"text": tile(IDS, 1)})
    conditions = Conditioning(np.stack([tile(IDS, 5)] * 2), np.repeat([[False], [True]], 5, axis=1))
    for sampler in (Counts(calls=5), Counts(calls=5, groups=4)):
        tokens, states = sampling.sample(
            diffusion,
            params,
            conditions,
            np.ones((1, 5), np.float32),
            seed=0,
            sampler=sampler,
            guidance_config=GuidanceConfig(),
            trace=True,
        )
        assert tokens.shape == (5, G * L) and tokens.max() < K
        masked = (states == K).reshape(len(states), 5, G, L)
        assert not (masked[:, :, 0] & ~masked[:, :, 1]).any()
        assert (masked[:, :, 1] & ~masked[:, :, 0]).any()


def test_an_adapter_changes_the_logits_of_both_groups():
    data = {"text": tile(IDS, 1)}
    tuned = stage(adapter=Adapter(rank=2))
    params = random_params(tuned, data)
    z, t, drop = jnp.full((1, G * L), K), jnp.ones(1, int), jnp.zeros(1, bool)
    predict = jax.jit(lambda params: tuned.predict(params, z, t, data["text"], drop))
    base = {name: value for name, value in params.items() if name != "adapter"}
    differs = np.abs(predict(params) - predict(base)).reshape(G, L * K)
    assert (differs.max(1) > 1e-3).all()


# ---- the autoregressive baseline


@pytest.fixture(scope="module", params=["linear", pytest.param("tied", marks=pytest.mark.slow)])
def baseline(request):
    """(stage, parameters) of a baseline over two positions with two codes each of two."""
    network = Autoregressive(
        codes=2,
        groups=G,
        grid=(1, 2),
        layers=2,
        width=8,
        heads=2,
        mlp_ratio=2,
        condition="none",
        head=request.param,
    )
    made = AutoregressiveStage(
        network=network, conditioner=NoConditioner(), codec=codec(), drop_caption=0.0
    )
    params = random_params(made, {"text": jnp.zeros((1, 0), jnp.int32)})
    return made, jax.tree.map(lambda x: 0.6 * x, params)  # no image is very unlikely


@pytest.mark.slow  # 7 s
def test_calls_with_a_cache_are_the_whole_pass_and_its_samples(baseline):
    """The probabilities of all 16 images add up to one, and samples have them."""
    stage, params = baseline
    ids, drop = jnp.zeros((16, 0), jnp.int32), jnp.zeros(16, bool)
    whole = jax.jit(stage.predict)(params, jnp.asarray(DATA), ids, drop)
    log_p = np.asarray(jax.nn.log_softmax(whole), np.float64)
    log_p = np.take_along_axis(log_p, DATA[..., None], axis=-1).sum((1, 2))
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)
    nats = jitted.bound(stage, params, jax.random.key(0), DATA, np.zeros((16, 0), np.int32), 1)
    np.testing.assert_allclose(-4 * np.asarray(nats), log_p, rtol=1e-5)
    encoded, past = stage.condition(params, ids, drop), None
    apply = jax.jit(stage.network.apply)
    for place in range(4):
        before = DATA[:, place - 1 : place] if place else np.full((16, 1), 2)
        logits, past = apply(
            {"params": params["autoregressive"]}, before, *encoded, jnp.int32(place), past
        )
        past = past if place else stage.network.pad_cache(past)
        np.testing.assert_allclose(logits[:, 0], whole[:, place], rtol=1e-4, atol=1e-5)
    rows = 20_000
    conditions = Conditioning(np.zeros((2, rows, 0), np.int32), np.zeros((2, rows), bool))
    tokens = sampling.sample(
        stage,
        params,
        conditions,
        np.ones((1, rows), np.float32),
        seed=0,
        sampler=AutoregressiveSampler(),
        guidance_config=GuidanceConfig(),
    )
    seen = np.bincount(tokens @ [8, 4, 2, 1], minlength=16)
    expected = rows * np.exp(log_p) / np.exp(log_p).sum()
    assert stats.chisquare(seen, expected).pvalue > 1e-3 and expected.min() > 5
