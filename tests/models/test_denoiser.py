"""The transformer against a plain NumPy forward pass and the published parameter count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models import attention
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.transformer import sinusoid

FIELDS = dict(codes=7, grid=(2, 3), T=5, layers=2, width=12, heads=3, mlp_ratio=2)
E, M = 10, 4  # text width and length
VARIANTS = [
    dict(),
    dict(time="sinusoidal"),
    dict(head="tied"),
]


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    text = jnp.asarray(rng.normal(size=(3, M, E)), jnp.float32)
    mask = jnp.array([[True] * 4, [True, True, False, False], [True, False, False, True]])
    return jnp.asarray(rng.integers(0, 8, (3, 6))), jnp.array([1, 3, 5]), text, mask


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def parameters(
    *,
    codes,
    grid,
    T,
    layers,
    width,
    mlp_ratio,
    text_width,
    time="learned",
    head="linear",
    **_,
):
    """By the description of the network: every linear map with a bias, a table and a map for each
    AdaLN.
    """
    linear = lambda a, b: a * b + b
    table = T * width if time == "learned" else 0
    ada = table + linear(width, 2 * width)
    self_attention = 4 * linear(width, width)
    cross_attention = 2 * linear(width, width) + 2 * linear(text_width, width)
    mlp = linear(width, mlp_ratio * width) + linear(mlp_ratio * width, width)
    block = 2 * ada + self_attention + cross_attention + 2 * width + mlp
    embedding = (codes + 1 + sum(grid)) * width
    return (
        embedding
        + layers * block
        + 2 * width
        + (linear(width, codes) if head == "linear" else codes)
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameter_count_by_formula(variant):
    model = Denoiser(**FIELDS, **variant)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    assert count(params) == parameters(**FIELDS, text_width=E, **variant)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


def test_vq_diffusion_b_has_the_published_parameters():
    fields = dict(codes=2887, grid=(32, 32), T=100, layers=19, width=1024, heads=16, mlp_ratio=4)
    shape = lambda s, dtype: jax.ShapeDtypeStruct(s, dtype)
    example = (
        shape((1, 1024), jnp.int32),
        shape((1,), jnp.int32),
        shape((1, 77, 512), jnp.float32),
        shape((1, 77), bool),
    )
    params = jax.eval_shape(Denoiser(**fields).init, jax.random.key(0), *example)["params"]
    assert count(params) == parameters(**fields, text_width=512) == 388_780_871


def random_params(model, seed=1):
    """Parameters in which no bias is 0 and no gain 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), jnp.float32), shapes)


def plain(
    params,
    z_t,
    t,
    text,
    mask,
    *,
    grid,
    heads,
    layers,
    T,
    width,
    time="learned",
    head="linear",
    **_,
):
    """h += SA(AdaLN(h, t)); h += CA(AdaLN(h, t), text); h += MLP(LN(h)), then LN and the head;
    float64.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    z_t, t, text, mask = (
        np.asarray(z_t),
        np.asarray(t),
        np.asarray(text, np.float64),
        np.asarray(mask),
    )
    place = np.arange(grid[0] * grid[1])
    dense = lambda x, q: x @ q["kernel"] + q["bias"]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    normal = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    affine = lambda x, q: normal(x) * q["scale"] + q["bias"]

    def ada(x, q):
        if time == "learned":
            e = q["table"]["embedding"][t - 1]
        else:
            angle = (
                (t - 1)[:, None]
                / T
                * 4000
                * np.exp(-np.arange(width // 2) * np.log(10000) / (width // 2 - 1))
            )
            e = np.concatenate([np.sin(angle), np.cos(angle)], -1)
        change = dense(e * sigmoid(e), q["linear"])[:, None]
        return normal(x) * (1 + change[..., :width]) + change[..., width:]

    def attend(q, k, v, allowed):
        out = np.zeros_like(q)
        f = width // heads
        for a in range(heads):
            s = slice(a * f, (a + 1) * f)
            scores = np.exp(q[..., s] @ k[..., s].swapaxes(1, 2) / np.sqrt(f)) * allowed[:, None]
            out[..., s] = scores / scores.sum(-1, keepdims=True) @ v[..., s]
        return out

    h = (
        p["tokens"]["embedding"][z_t]
        + p["rows"]["embedding"][place // grid[1]]
        + p["columns"]["embedding"][place % grid[1]]
    )
    for i in range(layers):
        q = p[f"block{i}"]
        query, key, value = np.split(dense(ada(h, q["norm1"]), q["self_attention"]["qkv"]), 3, -1)
        h = h + dense(attend(query, key, value, np.ones(z_t.shape)), q["self_attention"]["out"])
        key, value = np.split(dense(text, q["cross_attention"]["kv"]), 2, -1)
        query = dense(ada(h, q["norm2"]), q["cross_attention"]["q"])
        h = h + dense(attend(query, key, value, mask), q["cross_attention"]["out"])
        x = dense(affine(h, q["norm3"]), q["mlp_in"])
        h = h + dense(x * sigmoid(1.702 * x), q["mlp_out"])
    h = affine(h, p["norm"])
    return (
        dense(h, p["head"])
        if head == "linear"
        else h @ p["tokens"]["embedding"][: len(p["head_bias"])].T + p["head_bias"]
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_forward_pass_is_the_papers(variant):
    model = Denoiser(**FIELDS, **variant)
    params = random_params(model)
    got = jax.jit(model.apply)({"params": params}, *inputs())
    want = plain(params, *inputs(), **FIELDS, **variant)
    assert got.shape == (3, 6, 7) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_bfloat16_is_close_and_gives_float32_logits():
    params = random_params(Denoiser(**FIELDS))
    params = jax.tree.map(lambda p: p / 2, params)
    full, half = (
        jax.jit(Denoiser(**FIELDS, dtype=d).apply)({"params": params}, *inputs())
        for d in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    assert 1e-5 < np.abs(full - half).mean() / np.abs(full).mean() < 0.05


def test_text_outside_the_mask_has_no_influence():
    model = Denoiser(**FIELDS)
    params, (z, t, text, mask) = random_params(model), inputs()
    apply = jax.jit(lambda text: model.apply({"params": params}, z, t, text, mask))
    noise = 100 * jax.random.normal(jax.random.key(0), text.shape)
    np.testing.assert_array_equal(apply(jnp.where(mask[..., None], text, noise)), apply(text))
    assert (
        np.abs(apply(jnp.where(mask[..., None], text + 0.1, text)) - apply(text)).max((1, 2)) > 1e-4
    ).all()


def test_every_input_token_and_time_counts():
    model = Denoiser(**FIELDS)
    params, (z, t, text, mask) = random_params(model), inputs()
    apply = jax.jit(lambda z, t: model.apply({"params": params}, z, t, text, mask))
    plain_out = apply(z, t)
    for position in range(6):
        assert (
            np.abs(apply(z.at[:, position].set((z[:, position] + 1) % 8), t) - plain_out).max()
            > 1e-3
        )
    seen = [apply(z, jnp.full(3, i)) for i in range(1, 6)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i])


def test_sinusoid_by_hand():
    """T = 100, t = 26: the angle 1000 at frequency 1, 1000 * 1e-2 in the middle, 1000 * 1e-4 at the
    end.
    """
    got = sinusoid(jnp.array([25, 0]), 100, 6)
    angles = np.array([1000.0, 10.0, 0.1])
    np.testing.assert_allclose(got[0], [*np.sin(angles), *np.cos(angles)], atol=2e-4)
    np.testing.assert_allclose(got[1], [0, 0, 0, 1, 1, 1], atol=1e-6)


def test_initial_weights_and_logits():
    model = Denoiser(**FIELDS | dict(width=96, heads=4), init_std=0.05)
    params = jax.jit(model.init)(jax.random.key(0), *inputs())["params"]
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}
    for name, x in flat.items():
        if "kernel" in name or "embedding" in name:
            assert abs(float(x.std()) / 0.05 - 1) < 0.25 and abs(float(x.mean())) < 0.02, name
        else:
            assert (np.asarray(x) == (1 if "scale" in name else 0)).all(), name


def test_dropout_needs_a_key_and_changes_only_training():
    model = Denoiser(**FIELDS, dropout=0.5)
    params = random_params(model)
    run = lambda seed, deterministic: model.apply(
        {"params": params},
        *inputs(),
        dropout_rows=None if deterministic else jnp.arange(len(inputs()[0])),
        rngs={"dropout": jax.random.key(seed)},
    )
    run = jax.jit(run, static_argnums=1)
    plain = jax.jit(Denoiser(**FIELDS).apply)({"params": params}, *inputs())
    np.testing.assert_allclose(run(0, True), plain, rtol=1e-4, atol=1e-5)
    with jax.debug_key_reuse(False):  # jax 0.10 takes flax's folding of keys for a reuse
        one, two = run(0, False), run(1, False)
    assert np.abs(one - two).max() > 1e-2 and np.abs(one - plain).max() > 1e-2


@pytest.mark.parametrize(
    "wrong,sentence",
    [
        (dict(time="fourier"), "denoiser.time must be learned or sinusoidal, got 'fourier'"),
        (dict(head="untied"), "denoiser.head must be linear or tied, got 'untied'"),
        (dict(heads=5), "denoiser.width 12 must be a multiple of denoiser.heads 5"),
    ],
)
def test_bad_fields_are_one_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        Denoiser(**FIELDS | wrong).init(jax.random.key(0), *inputs())


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        pytest.param(dict(scan=True), marks=pytest.mark.slow),
        pytest.param(dict(time="sinusoidal"), marks=pytest.mark.slow),
        pytest.param(dict(condition="class", classes=5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_prepared_once_and_shared_by_prompts_changes_nothing(options):
    """Two prompts for each image, as in guidance, against the images given twice."""
    model = Denoiser(**FIELDS, **options)
    z, t, text, mask = inputs()
    prompts, masks = jnp.stack([text, text[::-1]], 1), jnp.stack([mask, mask[::-1]], 1)
    if model.condition == "class":
        text, prompts = jnp.arange(3), jnp.array([[0, 3], [1, 4], [2, 0]])
    flat = lambda x: x.reshape(6, *x.shape[2:])
    shapes = jax.eval_shape(model.init, jax.random.key(0), z, t, text, mask)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), jnp.float32), shapes
    )

    @jax.jit
    def both(params):
        rows = flat(prompts), flat(masks)
        prepared = model.prepare(params, rows[0])
        want = model.apply({"params": params}, z.repeat(2, 0), t.repeat(2), *rows)
        return want, model.apply({"params": params}, z, t, *rows, prepared=prepared, prompts=2)

    want, got = both(params)
    assert got.shape == (6, 6, 7)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(want[0] - want[1]).max() > 0.01


@pytest.mark.parametrize(
    "mlp,variants",
    [
        (
            "fc",
            [{"remat": "products", "scan": True, "attention": "chunked"}],
        ),
        pytest.param(
            "fc",
            [{"remat": "full", "attention": "chunked"}, {"scan": True}],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "conv",
            [{"attention": "chunked", "scan": True, "remat": "full"}],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_remat_scan_and_chunks_change_no_number_beyond_rounding(mlp, variants, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_ABOVE", 0)
    params, data = random_params(Denoiser(**FIELDS, mlp=mlp)), inputs()

    def gradient(**options):
        model = Denoiser(**FIELDS, mlp=mlp, **options)
        return jax.jit(
            jax.value_and_grad(lambda p: jnp.square(model.apply({"params": p}, *data)).mean())
        )(params)

    want = gradient()
    for options in variants:
        for a, b in zip(jax.tree.leaves(gradient(**options)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow  # 4 s
def test_scan_has_one_program_for_all_layers_and_remat_keeps_less():
    programs = {}
    how = {"plain": {}, "scan": {"scan": True}} | {r: {"remat": r} for r in ("products", "full")}
    for name, options in how.items():
        model = Denoiser(**FIELDS | {"layers": 6}, **options)
        params = random_params(model)
        grad = jax.jit(
            jax.grad(
                lambda p, model=model: jnp.square(model.apply({"params": p}, *inputs())).mean()
            )
        )
        programs[name] = grad.lower(params).as_text()
    products = {name: text.count("dot_general") for name, text in programs.items()}
    assert products["scan"] < products["plain"] / 3
    assert products["plain"] < products["products"] < products["full"]


@pytest.mark.slow  # 2 s
def test_dropout_is_drawn_anew_in_every_layer_and_call_of_a_scan():
    model = Denoiser(**FIELDS, dropout=0.5, scan=True)
    params = random_params(model)
    run = jax.jit(
        lambda key: model.apply(
            {"params": params},
            *inputs(),
            dropout_rows=jnp.arange(len(inputs()[0])),
            rngs={"dropout": key},
        )
    )
    one, two, again = run(jax.random.key(0)), run(jax.random.key(1)), run(jax.random.key(0))
    np.testing.assert_array_equal(one, again)
    assert (one != two).mean() > 0.9
