"""Attention in parts is attention: values, gradients, and nothing kept that is as large as the weights."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models import attention


def arrays(b, n, m, d, dtype=jnp.float32):
    shapes = (b, n, d), (b, m, d), (b, m, d), (b, n, d)
    return [jnp.asarray(3 * np.random.default_rng(i).normal(size=shape), dtype) for i, shape in enumerate(shapes)]


def run(f, q, k, v, g, heads):
    out, backward = jax.jit(lambda *x: jax.vjp(lambda *x: f(*x, heads), *x))(q, k, v)
    return out, *backward(g)


@pytest.mark.parametrize("cached", [1, 2 * 5 * 7, 6 * 5 * 7, 2**20])  # one head at a time, two, six of the twelve, all
def test_values_and_gradients_are_those_of_the_whole(cached, monkeypatch):
    monkeypatch.setattr(attention, "CACHED", cached)
    q, k, v, g = arrays(4, 5, 7, 12)
    for got, want in zip(run(attention.attend_in_parts, q, k, v, g, 3), run(attention.attend, q, k, v, g, 3), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("parts,kept", [(False, True), (True, True), (True, False)])
def test_few_weights_are_not_worth_parts(parts, kept, monkeypatch):
    """Whether the backward pass is handed 2 x 3 heads' 16 x 16 weights, which are exactly `MANY` or one more."""
    monkeypatch.setattr(attention, "MANY", 2 * 3 * 16 * 16 - (not kept))
    layer, x = attention.SelfAttention(width=6, heads=3, parts=parts), jnp.ones((2, 16, 6))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    handed = jax.eval_shape(lambda p, x: jax.vjp(layer.apply, p, x)[1], params, x)
    assert (max(leaf.size for leaf in jax.tree.leaves(handed)) == 2 * 3 * 16 * 16) == kept


def test_it_is_as_exact_in_half_precision():
    """Against the same attention in float64, as close as the plain form is."""
    arguments = arrays(2, 6, 6, 8, jnp.bfloat16)
    q, k, v = (np.asarray(x, np.float64).reshape(2, 6, 2, 4).swapaxes(1, 2) for x in arguments[:3])
    scores = q @ k.swapaxes(-1, -2) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(2, 6, 8)
    parts, whole = (run(f, *arguments, 2) for f in (attention.attend_in_parts, attention.attend))
    assert [x.dtype for x in parts] == [x.dtype for x in whole] == [jnp.bfloat16] * 4
    far = lambda x: np.abs(np.asarray(x[0], np.float64) - exact).max()
    assert far(parts) <= 1.5 * far(whole) + 1e-6


def test_scores_beyond_the_range_of_the_exponential_function_are_no_matter():
    q, k, v, g = arrays(1, 4, 4, 4)
    for x in run(attention.attend_in_parts, 100 * q, 100 * k, v, g, 1):
        assert np.isfinite(x).all()


def test_the_weights_are_not_kept():
    """The largest array that the backward pass is handed, for 2 x 3 heads with 64 x 64 weights each."""
    q, k, v, _ = arrays(2, 64, 64, 12)
    sizes = {}
    for f in (attention.attend, attention.attend_in_parts):
        kept = jax.eval_shape(lambda *x, f=f: jax.vjp(lambda *x: f(*x, 3), *x)[1], q, k, v)
        sizes[f] = max(x.size for x in jax.tree.leaves(kept))
    assert sizes[attention.attend] >= 2 * 3 * 64 * 64 > 2 * sizes[attention.attend_in_parts]
