"""The autoregressive baseline: a normalised distribution, cached calls equal to a full pass, and
samples from exactly that distribution.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.diffusion_stage import CODEC, batch
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.runtime.devices import local_devices
from vqd_jax.runtime.rows import Rows
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Constraint
from vqd_jax.samplers.guidance import GuidanceConfig, apply_temperature, guide, top_k_filter
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.token_stage import Conditioning

K, N = 3, 4
CONDITIONERS = {
    "text": lambda: Conditioner(
        encoder=LearnedText(vocabulary=6, length=3, width=8, layers=0, heads=1)
    ),
    "class": lambda: ClassConditioner(classes=5),
    "none": NoConditioner,
}


def make(condition="text", head="linear", drop_caption=0.0, **fields):
    classes = 6 if condition == "class" else 0
    network = Autoregressive(
        codes=K,
        grid=(2, 2),
        width=8,
        heads=2,
        mlp_ratio=2,
        condition=condition,
        classes=classes,
        head=head,
        **{"layers": 2} | fields,
    )
    return AutoregressiveStage(
        network=network,
        conditioner=CONDITIONERS[condition](),
        codec=CODEC,
        drop_caption=drop_caption,
    )


def data(condition="text", b=4, seed=0):
    out = batch(b, seed)
    return out | {"text": out["text"][:, : {"text": 3, "class": 1, "none": 0}[condition]]}


def random_params(stage, condition="text"):
    """Large enough that the logits depend on everything."""
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), data(condition, 1))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


VARIANTS = pytest.mark.parametrize(
    "condition, head",
    [
        ("text", "linear"),
        *(
            pytest.param(*variant, marks=pytest.mark.slow)
            for variant in (("text", "tied"), ("class", "linear"), ("none", "linear"))
        ),
    ],
)


@functools.cache
def whole(stage):
    return jax.jit(stage.predict)


@VARIANTS
def test_a_token_depends_on_those_before_it_and_on_no_other(condition, head):
    stage, rows = make(condition, head), data(condition)
    params, z, drop = random_params(stage, condition), np.array(rows["tokens"]), jnp.zeros(4, bool)
    logits = whole(stage)(params, jnp.asarray(z), rows["text"], drop)
    for place in range(N):
        changed = z.copy()
        changed[:, place] = (z[:, place] + 1) % K
        differs = (
            np.asarray(whole(stage)(params, jnp.asarray(changed), rows["text"], drop)) != logits
        ).any((0, 2))
        np.testing.assert_array_equal(differs, np.arange(N) > place)


@VARIANTS
def test_the_probabilities_of_all_pictures_add_up_to_one(condition, head):
    stage = make(condition, head)
    params, every = (
        random_params(stage, condition),
        jnp.array([*itertools.product(range(K), repeat=N)]),
    )
    ids = jnp.repeat(data(condition, 1)["text"], len(every), axis=0)
    nats = jitted.bound(stage, params, jax.random.key(0), every, ids, 1)
    p = np.exp(-N * np.asarray(nats, np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    assert p.max() > 3 * p.min()


def plain(params, z, text, mask, heads, layers):
    """The forward pass of a text model by its definition, place by place, in float64."""
    p, z = jax.tree.map(lambda x: np.asarray(x, np.float64), params), np.asarray(z)
    text, mask = np.asarray(text, np.float64), np.asarray(mask)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    dense = lambda x, q: x @ q["kernel"] + q["bias"]
    norm = lambda x, q: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * q["scale"]
        + q["bias"]
    )

    def attend(q, k, v):  # one query to the rows of k
        f = len(q) // heads
        parts = []
        for s in (slice(a * f, (a + 1) * f) for a in range(heads)):
            w = np.exp(k[:, s] @ q[s] / np.sqrt(f))
            parts.append(w @ v[:, s] / w.sum())
        return np.concatenate(parts)

    out = np.zeros((*z.shape, K))
    for i, row in enumerate(z):
        before = [K, *row[:-1]]
        place = np.arange(N)
        h = (
            p["tokens"]["embedding"][before]
            + p["rows"]["embedding"][place // 2]
            + p["columns"]["embedding"][place % 2]
        )
        for layer in range(layers):
            q = p[f"block{layer}"]
            x = np.split(dense(norm(h, q["norm1"]), q["self_qkv"]), 3, -1)
            h = h + dense(
                np.stack([attend(x[0][j], x[1][: j + 1], x[2][: j + 1]) for j in range(N)]),
                q["self_out"],
            )
            key, value = np.split(dense(text[i][mask[i]], q["cross_kv"]), 2, -1)
            query = dense(norm(h, q["norm2"]), q["cross_q"])
            h = h + dense(
                np.stack([attend(query[j], key, value) for j in range(N)]), q["cross_out"]
            )
            x = dense(norm(h, q["norm3"]), q["mlp_in"])
            h = h + dense(x * sigmoid(1.702 * x), q["mlp_out"])
        out[i] = dense(norm(h, p["norm"]), p["head"])
    return out


def test_the_forward_pass_is_the_definition():
    stage, rows = make(), data()
    params, drop = random_params(stage), jnp.array([False, False, True, False])
    got = whole(stage)(params, rows["tokens"], rows["text"], drop)
    want = plain(
        params["autoregressive"],
        rows["tokens"],
        *stage.condition(params, rows["text"], drop),
        heads=2,
        layers=2,
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@VARIANTS
def test_calls_with_what_was_seen_give_the_logits_of_the_whole_pass(condition, head):
    stage, rows = make(condition, head), data(condition)
    params, z, network = random_params(stage, condition), rows["tokens"], stage.network
    encoded = stage.condition(params, rows["text"], jnp.zeros(4, bool))
    want, past = whole(stage)(params, z, rows["text"], jnp.zeros(4, bool)), None
    apply = jax.jit(network.apply)
    for place in range(N):
        before = z[:, place - 1 : place] if place else jnp.full((4, 1), K)
        logits, past = apply(
            {"params": params["autoregressive"]}, before, *encoded, jnp.int32(place), past
        )
        past = past if place else network.pad_cache(past)
        np.testing.assert_allclose(logits[:, 0], want[:, place], rtol=1e-5, atol=1e-5)


def table(rng):
    """p(z_0, z_1, z_2) over 2 codes as a table, and what the sampler calls for it; the past is the
    tokens seen.
    """
    p = jnp.asarray(rng.dirichlet(np.ones(8)).reshape(2, 2, 2), jnp.float32)

    def predict(past, before, place):
        if past is None:
            return jnp.broadcast_to(jnp.log(p.sum((1, 2))), (before.shape[0], 1, 2)), jnp.zeros(
                (before.shape[0], 3), int
            )
        past = past.at[:, place - 1].set(before)
        second = jnp.log(p.sum(2))[past[:, 0]]
        third = jnp.log(p)[past[:, 0], past[:, 1]]
        return jnp.where(place == 1, second, third)[:, None], past

    return np.asarray(p), predict


def test_draws_have_the_probabilities_of_the_table():
    p, predict = table(np.random.default_rng(3))
    count = 40_000
    keys = jax.random.split(jax.random.key(1), count)
    z = np.asarray(
        jax.jit(lambda keys: AutoregressiveSampler()(keys, predict, jnp.full((count, 3), 2), 2))(
            keys
        )
    )
    seen = np.bincount(z @ [4, 2, 1], minlength=8)
    chi_square = ((seen - count * p.ravel()) ** 2 / (count * p.ravel())).sum()
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def sampled(stage, params, conditions, guidance_config, **options):
    scales = np.full((1, conditions.ids.shape[1]), guidance_config.guidance, np.float32)
    return sampling.sample(
        stage,
        params,
        conditions,
        scales,
        seed=5,
        sampler=AutoregressiveSampler(),
        guidance_config=guidance_config,
        **options,
    )


@pytest.fixture(scope="module")
def conditions():
    ids = np.stack([data(b=8)["text"]] * 2)
    return Conditioning(ids, np.repeat([[False], [True]], 8, axis=1))


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 3.0, "temperature": 0.7, "top_k": 2},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {"guidance": 1.0},
                {"guidance": 3.0, "ramp": True},
                {"guidance": 3.0, "guidance_below": 0.5},
            )
        ),
    ],
    ids=str,
)
@pytest.mark.slow  # 8 s
def test_sampling_is_a_loop_over_whole_passes(conditions, settings):
    """With the same noise; guidance, ramp and the calls without it by their definitions."""
    stage, guidance_config = make(), GuidanceConfig(**settings)
    params, keys = random_params(stage), sampling.image_keys(5, 0, 8)
    z = jnp.full((8, N), K)
    for place in range(N):
        logits, null = (
            whole(stage)(
                params,
                jnp.minimum(z, K - 1),
                jnp.asarray(conditions.ids[i]),
                jnp.asarray(conditions.drop[i]),
            )[:, place : place + 1]
            for i in range(2)
        )
        w = 1 + (guidance_config.guidance - 1) * (
            place / N
            if guidance_config.ramp
            else float(1 - place / N <= guidance_config.guidance_below)
        )
        logits = apply_temperature(
            guide(logits[None], null, jnp.full((1, 8), w)), guidance_config.temperature
        )
        logits = top_k_filter(logits, guidance_config.top_k) if guidance_config.top_k else logits
        given = lambda past, before, here: (logits, None)  # the first call's draw, at another place
        u_place = functools.partial(_draw_at, place)
        z = z.at[:, place].set(u_place(keys, given, z))
    np.testing.assert_array_equal(sampled(stage, params, conditions, guidance_config), z)


def _draw_at(place, keys, predict, z):
    from vqd_jax.samplers.autoregressive import next_token, start

    if place == 0:
        return start(keys, predict, z, K)[1][:, 0]
    return next_token(keys, predict, (None, z), place)[1][:, place]


@pytest.mark.slow  # 7 s
def test_known_tokens_stay_and_the_trace_and_the_watch_show_every_call(conditions):
    stage = make()
    params, plain_ = random_params(stage), GuidanceConfig()
    free = sampled(stage, params, conditions, plain_)
    known = Constraint(np.arange(N)[None] == np.full((8, 1), 2), (free + 1) % K)
    held, states = sampled(stage, params, conditions, plain_, constraint=known, trace=True)
    np.testing.assert_array_equal(held[:, 2], (free[:, 2] + 1) % K)
    np.testing.assert_array_equal(held[:, :2], free[:, :2])
    after = np.arange(N)[:, None] >= np.arange(N)  # a call shows its token
    shown = after | (np.arange(N) == 2)
    np.testing.assert_array_equal(states, np.where(shown[:, None], held[None], K))
    watched = [
        *sampling.watch(
            stage,
            params,
            conditions,
            np.ones((1, 8), np.float32),
            seed=5,
            sampler=AutoregressiveSampler(),
            guidance_config=plain_,
        )
    ]
    np.testing.assert_array_equal(watched, np.where(after[:, None], free[None], K))


@pytest.mark.slow  # inference/test_pipeline.py has the same promise for diffusion
def test_four_devices_and_another_batch_give_the_same_pictures(conditions):
    stage, guidance_config = make(), GuidanceConfig(guidance=2.0)
    params = random_params(stage)
    want = sampled(stage, params, conditions, guidance_config)
    np.testing.assert_array_equal(
        sampled(stage, params, conditions, guidance_config, devices=local_devices(4)), want
    )
    last = Conditioning(conditions.ids[:, 3:], conditions.drop[:, 3:])
    np.testing.assert_array_equal(sampled(stage, params, last, guidance_config, first=3), want[3:])


def test_the_loss_is_the_mean_of_the_likelihood_and_captions_are_dropped():
    rows = data(b=64)
    stage = make()
    params = random_params(stage)
    loss, (seen, metrics) = stage.loss(
        params, {}, {}, rows, jax.random.key(0), jnp.int32(0), Rows.of_device(64)
    )
    exact = stage.bound(
        params, jax.random.split(jax.random.key(9), 64), rows["tokens"], rows["text"], 3
    )
    np.testing.assert_allclose(loss, exact.mean(), rtol=1e-5)
    assert metrics.keys() == {"loss", "accuracy"} and not seen
    never, always = (
        make(drop_caption=p).loss(
            params, {}, {}, rows, jax.random.key(0), jnp.int32(0), Rows.of_device(64)
        )[0]
        for p in (0.0, 1.0)
    )
    null = whole(stage)(params, rows["tokens"], rows["text"], jnp.ones(64, bool))
    want = -jnp.take_along_axis(jax.nn.log_softmax(null), rows["tokens"][..., None], -1).mean()
    np.testing.assert_allclose(always, want, rtol=1e-5)
    assert abs(always - never) > 1e-2


@pytest.mark.slow  # ten seconds each; the next test compares a scan bit for bit
@pytest.mark.parametrize(
    "options", [{"remat": "full"}, {"scan": True}, {"scan": True, "remat": "full"}], ids=str
)
def test_remat_and_scan_change_no_number_beyond_rounding(options):
    rows, plain_ = data(), make(layers=11)  # more than ten, whose names do not sort by number
    params = random_params(plain_)
    changed = make(layers=11, **options)
    assert (
        jax.eval_shape(changed.init, jax.random.key(0), rows)[0]
        == jax.eval_shape(plain_.init, jax.random.key(0), rows)[0]
    )
    loss = lambda stage: (
        lambda p: stage.loss(p, {}, {}, rows, jax.random.key(0), jnp.int32(0), Rows.of_device(4))[0]
    )
    want, got = (jax.jit(jax.grad(loss(stage)))(params) for stage in (plain_, changed))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.slow  # 5 s
def test_a_scan_draws_the_same_pictures(conditions):
    params = random_params(make())
    want, got = (
        sampled(make(scan=scan), params, conditions, GuidanceConfig(guidance=2.0))
        for scan in (False, True)
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow  # 6 s; the denoiser's is the same code
def test_scan_has_one_program_for_all_layers_and_remat_keeps_less():
    products = {}
    for name, options in {"plain": {}, "scan": {"scan": True}, "remat": {"remat": "full"}}.items():
        stage, rows = make(layers=6, **options), data()
        keys = jax.random.split(jax.random.key(0), 4)
        loss = lambda p, stage=stage, rows=rows, keys=keys: stage.bound(
            p, keys, rows["tokens"], rows["text"], 1
        ).mean()
        products[name] = (
            jax.jit(jax.grad(loss)).lower(random_params(stage)).as_text().count("dot_general")
        )
    assert products["scan"] < products["plain"] / 3 and products["remat"] > products["plain"]


def test_the_program_keeps_what_it_has_seen():
    """A later call multiplies one token by each kernel: far fewer operations than a pass over all
    of them.
    """
    network = Autoregressive(
        codes=16, grid=(8, 8), layers=2, width=32, heads=2, mlp_ratio=4, condition="none"
    )
    stage = AutoregressiveStage(
        network=network, conditioner=NoConditioner(), codec=CODEC, drop_caption=0.0
    )
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), {"text": jnp.zeros((1, 0), int)})
    condition = (jnp.zeros(1, int), jnp.zeros((1, 0), bool))
    flops = lambda *args: (
        jax.jit(network.apply)
        .lower({"params": shapes["autoregressive"]}, *args)
        .cost_analysis()["flops"]
    )
    past = jax.eval_shape(
        lambda p: network.pad_cache(
            network.apply({"params": p}, jnp.zeros((1, 1), int), *condition)[1]
        ),
        shapes["autoregressive"],
    )
    assert (
        flops(jnp.zeros((1, 1), int), *condition, 5, past)
        < flops(jnp.zeros((1, 64), int), *condition) / 20
    )
