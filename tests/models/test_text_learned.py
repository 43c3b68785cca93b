"""The learned encoder against numpy float64, which leaves the padding out instead of masking it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models.text_learned import LearnedText

IDS = np.array(
    [[1, 5, 9, 7, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0], [1, 3, 4, 5, 6, 7, 8, 2]], np.int32
)


def build(layers, dtype=jnp.float32):
    model = LearnedText(vocabulary=11, length=8, width=12, layers=layers, heads=3, dtype=dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IDS))
    rng = np.random.default_rng(0)  # biases and gains too, at a size where every term shows
    return model, jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4, jnp.float32), shapes
    )


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(params, tokens, layers, heads):
    """States of one caption without its padding, one head and one query at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    x = params["token_embedding"]["embedding"][tokens] + params["position_embedding"][: len(tokens)]
    for i in range(layers):
        p = params[f"block_{i}"]
        a, y = p["attention"], norm(x, p["norm_1"])
        q, k, v = (dense(y, a[name]) for name in ("query", "key", "value"))
        out = np.zeros_like(x)
        for f in np.split(np.arange(x.shape[1]), heads):
            for row in range(len(x)):
                w = np.exp(k[:, f] @ q[row, f] / np.sqrt(len(f)))
                out[row, f] = w / w.sum() @ v[:, f]
        x = x + dense(out, a["out"])
        x = x + dense(gelu(dense(norm(x, p["norm_2"]), p["mlp_in"])), p["mlp_out"])
    return norm(x, params["norm"])


@pytest.mark.parametrize("layers", [0, 2])
def test_equals_numpy_without_the_padding(layers):
    model, params = build(layers)
    states, mask = jax.jit(model.apply)(params, jnp.asarray(IDS))
    assert states.dtype == jnp.float32
    np.testing.assert_array_equal(mask, IDS != 0)
    for row, tokens in zip(states, IDS, strict=True):
        tokens = tokens[tokens != 0]
        np.testing.assert_allclose(
            row[: len(tokens)], reference(params, tokens, layers, heads=3), atol=1e-5
        )


def test_the_last_token_reaches_the_first_state():
    model, params = build(1)
    states, _ = jax.jit(model.apply)(params, jnp.asarray(IDS))
    other, _ = jax.jit(model.apply)(params, jnp.asarray(IDS).at[0, 3].set(10))
    assert abs(states[0, 0] - other[0, 0]).max() > 1e-3
    np.testing.assert_array_equal(states[1:], other[1:])


def test_nothing_but_padding_is_finite():
    model, params = build(1)
    grads = jax.jit(jax.grad(lambda p: model.apply(p, jnp.zeros((2, 8), jnp.int32))[0].sum()))(
        params
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow  # 4 s
def test_bfloat16_is_near_and_its_parameters_are_float32():
    model, params = build(2, jnp.bfloat16)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IDS))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    states, _ = jax.jit(model.apply)(params, jnp.asarray(IDS))
    exact, _ = jax.jit(build(2)[0].apply)(params, jnp.asarray(IDS))
    assert states.dtype == jnp.float32
    np.testing.assert_allclose(states, exact, atol=0.1)
    assert abs(states - exact).max() > 1e-5


def test_sizes_that_do_not_fit_are_one_sentence():
    with pytest.raises(UserError, match="takes 9 tokens per caption, got 8"):
        LearnedText(vocabulary=11, length=9, width=12, layers=2, heads=4).init(
            jax.random.key(0), jnp.asarray(IDS)
        )
    with pytest.raises(UserError, match="does not divide"):
        LearnedText(vocabulary=11, length=8, width=10, layers=2, heads=4).init(
            jax.random.key(0), jnp.asarray(IDS)
        )
