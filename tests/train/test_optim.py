"""The optimizer against AdamW written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.train.muon import orthogonal
from vqd_jax.train.optim import Optim

FIELDS = dict(
    learning_rate=0.1,
    warmup=80,
    decay="cosine",
    final=0.1,
    betas=(0.9, 0.96),
    weight_decay=0.0,
    clip=0.0,
)
STEPS, BATCH = 50, 8  # the warm-up ends after 10 steps
LENGTH = (STEPS * BATCH, Pace(BATCH))


def params():
    return {
        "kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
        "bias": jnp.array([0.5, -1.0]),
        "scale": jnp.array([1.0]),
    }


@pytest.mark.parametrize(
    "decay,middle", [("cosine", 0.1 * (0.9 * 0.5 + 0.1)), ("linear", 0.055), ("constant", 0.1)]
)
def test_schedule_by_hand(decay, middle):
    rate = Optim(**FIELDS | dict(decay=decay)).schedule(*LENGTH)
    values = [float(rate(step)) for step in (0, 5, 10, 30, 50)]
    end = 0.1 if decay == "constant" else 0.01
    np.testing.assert_allclose(values, [0, 0.05, 0.1, middle, end], rtol=1e-5, atol=1e-9)
    falling = [float(rate(step)) for step in range(10, 51)]
    assert (np.diff(falling) <= 1e-9).all()


def test_the_warm_up_is_in_examples_and_fits_into_the_run():
    for batch, steps, first in ((16, 50, 5), (4, 50, 20), (1, 10, 10), (1000, 10, 1)):
        rate = Optim(**FIELDS).schedule(steps * batch, Pace(batch))
        assert float(rate(first)) == pytest.approx(0.1, rel=1e-5)
        assert float(rate(first - 1)) == pytest.approx(
            0.1 * (first - 1) / first, rel=1e-5, abs=1e-9
        )


def adamw(p, gradients, rates, *, betas, weight_decay, clip):
    """AdamW (Loshchilov and Hutter 2019) behind clipping by the global norm, float64."""
    p = {k: np.asarray(v, np.float64) for k, v in p.items()}
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for i, (g, rate) in enumerate(zip(gradients, rates), start=1):
        norm = np.sqrt(sum(np.square(x).sum() for x in g.values()))
        shrink = min(1, clip / norm) if clip else 1
        for k in p:
            x = np.asarray(g[k], np.float64) * shrink
            m[k], v[k] = (
                betas[0] * m[k] + (1 - betas[0]) * x,
                betas[1] * v[k] + (1 - betas[1]) * x**2,
            )
            step = m[k] / (1 - betas[0] ** i) / (np.sqrt(v[k] / (1 - betas[1] ** i)) + 1e-8)
            p[k] = p[k] - rate * (step + weight_decay * p[k])
    return p


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_after_a_change_of_the_batch_size_the_rate_is_that_of_the_examples_seen(decay):
    optim, length = Optim(**FIELDS | dict(decay=decay)), STEPS * BATCH
    plain = optim.schedule(length, Pace(BATCH))
    for size, step in ((16, 20), (4, 3), (16, 4)):
        changed = optim.schedule(length, Pace(size, step, step * BATCH, step * BATCH))
        for later in range(120 // size):
            seen = step * BATCH + later * size
            assert float(changed(step + later)) == pytest.approx(
                float(plain(seen / BATCH)), rel=1e-5
            )


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_several_steps_are_adamw(clip, weight_decay):
    optim = Optim(**FIELDS | dict(clip=clip, weight_decay=weight_decay))
    optimizer, rng = optim.build(*LENGTH), np.random.default_rng(0)
    rates = [0.1 * i / 10 for i in range(8)]
    gradients = [
        {k: (10.0 if i % 2 else 0.1) * rng.normal(size=v.shape) for k, v in params().items()}
        for i in range(8)
    ]
    p, state = params(), optimizer.init(params())
    update = jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(jax.tree.map(jnp.float32, g), state, p)
        p = optax.apply_updates(p, updates)
    want = adamw(
        params(), gradients, rates, betas=(0.9, 0.96), weight_decay=weight_decay, clip=clip
    )
    for k in p:
        np.testing.assert_allclose(p[k], want[k], rtol=1e-4, atol=1e-6)
    other = adamw(
        params(), gradients, rates, betas=(0.9, 0.96), weight_decay=weight_decay, clip=1.0 - clip
    )
    assert np.abs(other["kernel"] - want["kernel"]).max() > 1e-3  # so clipping shows


def test_weight_decay_shrinks_every_leaf():
    optimizer = Optim(**FIELDS | dict(weight_decay=0.3)).build(*LENGTH)
    p, state = params(), optimizer.init(params())
    for _ in range(2):  # the first step of a warm-up has rate 0, the second 0.01
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, p), state, p)
    for k in p:
        np.testing.assert_allclose(updates[k], -0.01 * 0.3 * p[k], rtol=1e-5)


def test_wrong_values_are_one_sentence():
    with pytest.raises(UserError, match="cosine, linear or constant, got 'step'"):
        Optim(**FIELDS | dict(decay="step"))
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=f"a learning rate must be positive, got {rate:g}"):
            Optim(**FIELDS | dict(learning_rate=rate))
    for wrong in (dict(warmup=-1), dict(betas=(0.9, 1.0)), dict(clip=-1.0)):
        with pytest.raises(UserError, match="betas from 0 to below 1"):
            Optim(**FIELDS | wrong)
    with pytest.raises(
        UserError, match="the rate of Muon must be positive, or 0 for AdamW on everything, got -1"
    ):
        Optim(**FIELDS, muon=-1.0)


@pytest.mark.parametrize("shape", [(8, 24), (3, 3, 16, 8)])
def test_muon_turns_the_gradient_of_a_matrix_into_its_nearest_orthogonal_one(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    p = {
        "layer": {"kernel": jax.random.normal(keys[0], shape), "bias": jnp.ones(shape[-1])},
        "head": {"kernel": jax.random.normal(keys[1], (8, 4))},
        "table": {"embedding": jax.random.normal(keys[2], (5, 8))},
    }
    fields = FIELDS | dict(decay="constant", warmup=BATCH)
    both = Optim(**fields, muon=0.5).build(*LENGTH)
    plain = optax.nadamw(Optim(**fields).schedule(*LENGTH), 0.9, 0.96, weight_decay=0.0)
    states, g = [both.init(p), plain.init(p)], jax.tree.map(lambda x: 7 * x, p)
    for _ in range(2):  # the first rate is 0
        (u, states[0]), (v, states[1]) = (o.update(g, s, p) for o, s in zip((both, plain), states))
    flat = lambda x: np.asarray(x, np.float64).reshape(-1, shape[-1])
    left, _, right = np.linalg.svd(flat(g["layer"]["kernel"]), full_matrices=False)
    scale = 0.2 * max(flat(p["layer"]["kernel"]).shape) ** 0.5 * 0.5
    inside = (
        left.T @ flat(u["layer"]["kernel"]) @ right.T / -scale
    )  # the identity, up to Newton-Schulz' 0.7 .. 1.2
    assert ((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3)).all()
    np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0, atol=1e-4)
    for branch, leaf in (("layer", "bias"), ("head", "kernel"), ("table", "embedding")):  # NAdamW
        np.testing.assert_allclose(u[branch][leaf], v[branch][leaf], rtol=1e-6)
        assert np.abs(v[branch][leaf]).min() > 0


def test_muon_is_that_of_optax_and_so_is_its_state():
    """So that a run of an earlier version goes on."""
    keys = jax.random.split(jax.random.key(0), 3)
    p = {
        "wide": {"kernel": jax.random.normal(keys[0], (8, 24))},
        "tall": {"kernel": jax.random.normal(keys[1], (3, 3, 16, 8)), "bias": jnp.ones(8)},
    }
    fields = FIELDS | dict(weight_decay=0.1, muon=0.05)
    ours, rate = Optim(**fields), Optim(**FIELDS).schedule(*LENGTH)
    matrix = lambda path, x: (
        optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
        if x.ndim > 1
        else None
    )
    theirs = optax.contrib.muon(
        ours.schedule(*LENGTH, 0.05),
        weight_decay=0.1,
        consistent_rms=0.2,
        adam_learning_rate=rate,
        adam_b1=0.9,
        adam_b2=0.96,
        adam_weight_decay=0.1,
        muon_weight_dimension_numbers=lambda p: jax.tree_util.tree_map_with_path(matrix, p),
    )
    ours = ours.build(*LENGTH)
    states = [ours.init(p), theirs.init(p)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for i in range(3):
        g = jax.tree.map(lambda x: jnp.sin(x + i), p)
        (u, states[0]), (v, states[1]) = (o.update(g, s, p) for o, s in zip((ours, theirs), states))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), u, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *states)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (96, 160)], ids=str)
def test_in_bfloat16_a_matrix_is_as_orthogonal(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    for dtype in (jnp.float32, jnp.bfloat16):
        y = orthogonal(x, dtype)
        values = np.linalg.svd(np.asarray(y, np.float64), compute_uv=False)
        assert y.dtype == jnp.float32 and 0.6 < values.min() and values.max() < 1.3
    exact = np.asarray(orthogonal(x, jnp.float32))
    assert np.abs(np.asarray(y) - exact).max() < 0.05 * np.abs(exact).max()
