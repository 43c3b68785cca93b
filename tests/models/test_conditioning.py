"""Captions reach the denoiser as the encoder's states, dropped ones as the null states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.text_learned import LearnedText

ENCODER = LearnedText(vocabulary=20, length=5, width=8, layers=1, heads=2)
MODEL = Conditioner(encoder=ENCODER)
IDS = jnp.array([[3, 4, 0, 0, 0], [5, 6, 7, 0, 0], [9, 0, 0, 0, 0]])
DROP = jnp.array([False, True, False])


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), IDS, DROP)["params"]


@jax.jit
def apply(params, ids=IDS, drop=DROP):
    return MODEL.apply({"params": params}, ids, drop)


@jax.jit
def encode(params, ids):
    return ENCODER.apply({"params": params}, ids)


def test_kept_rows_are_the_encoders_and_dropped_ones_the_null(params):
    states, mask = apply(params)
    want, want_mask = encode(params["encoder"], IDS)
    np.testing.assert_allclose(states[0], want[0], atol=1e-6)
    np.testing.assert_allclose(states[2], want[2], atol=1e-6)
    np.testing.assert_array_equal(states[1], params["null"])
    np.testing.assert_array_equal(mask, [want_mask[0], [True] * 5, want_mask[2]])
    np.testing.assert_array_equal(want_mask[0], [True, True, False, False, False])


def test_a_dropped_caption_leaves_no_trace(params):
    other = IDS.at[1].set(jnp.array([1, 1, 1, 1, 1]))
    for a, b in zip(apply(params), apply(params, other)):
        np.testing.assert_array_equal(a, b)


def test_gradients_go_where_the_states_came_from(params):
    weight = jax.random.normal(jax.random.key(1), (3, 5, 8))
    slope = jax.jit(jax.grad(lambda p, drop: (apply(p, drop=drop)[0] * weight).sum()))
    np.testing.assert_allclose(slope(params, DROP)["null"], weight[1], atol=1e-6)
    nothing = slope(params, jnp.zeros(3, bool))
    assert not nothing["null"].any() and any(x.any() for x in jax.tree.leaves(nothing["encoder"]))
    nothing = slope(params, jnp.ones(3, bool))
    np.testing.assert_allclose(nothing["null"], weight.sum(0), atol=1e-5)
    assert not any(x.any() for x in jax.tree.leaves(nothing["encoder"]))


def test_the_null_starts_as_wide_as_asked(params):
    wide = Conditioner(
        encoder=LearnedText(vocabulary=4, length=40, width=100, layers=0, heads=1), null_std=0.3
    )
    null = jax.jit(wide.init)(jax.random.key(0), jnp.ones((1, 40), jnp.int32), jnp.zeros(1, bool))[
        "params"
    ]["null"]
    assert null.shape == (40, 100) and null.dtype == jnp.float32
    assert abs(null.std() - 0.3) < 0.02 and abs(null.mean()) < 0.03
    assert abs(params["null"].std() - 1) < 0.4


def test_without_a_learned_null_the_empty_caption_stands_in():
    model = Conditioner(encoder=ENCODER, null="empty", empty=(1, 2, 0, 0, 0))
    params = jax.jit(model.init)(jax.random.key(0), IDS, DROP)["params"]
    assert params.keys() == {"encoder"}
    states, mask = jax.jit(model.apply)({"params": params}, IDS, DROP)
    want, want_mask = encode(params["encoder"], IDS.at[1].set(jnp.array([1, 2, 0, 0, 0])))
    np.testing.assert_array_equal(states, want)
    np.testing.assert_array_equal(mask, want_mask)


def test_a_frozen_encoder_gets_no_gradient(params):
    model = Conditioner(encoder=ENCODER, frozen=True)

    @jax.jit
    def run(params):
        def loss(p):
            states = model.apply({"params": p}, IDS, DROP)[0]
            return jnp.square(states).sum(), states

        return jax.grad(loss, has_aux=True)(params)

    slope, states = run(params)
    np.testing.assert_array_equal(states, apply(params)[0])
    assert not any(x.any() for x in jax.tree.leaves(slope["encoder"])) and slope["null"].any()


def test_classes_and_nothing():
    labels, _ = ClassConditioner(classes=5).apply({}, jnp.array([[3], [4], [0]]), DROP)
    np.testing.assert_array_equal(labels, [3, 5, 0])
    nothing, mask = NoConditioner().apply({}, jnp.zeros((3, 0), jnp.int32), DROP)
    assert nothing.shape == (3,) and mask.shape == (3, 0)
