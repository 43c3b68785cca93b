"""Every kind of attention: values and gradients are JAX's own; chunked attention and the kernels
store nothing as large as the weights.

cuDNN's kernels run on no CPU: here JAX's own attention stands in for them behind the same code.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models import attention, fused_attention


def arrays(b, n, m, d, dtype=jnp.float32):
    shapes = (b, n, d), (b, m, d), (b, m, d), (b, n, d)
    return [
        jnp.asarray(3 * np.random.default_rng(i).normal(size=shape), dtype)
        for i, shape in enumerate(shapes)
    ]


def run(f, q, k, v, g, heads):
    out, backward = jax.jit(lambda *x: jax.vjp(lambda *x: f(*x, heads), *x))(q, k, v)
    return out, *backward(g)


def reference(q, k, v, heads, mask=None):
    """JAX's attention in float64, differentiated by JAX."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(split(q), split(k), split(v), mask=mask).reshape(q.shape)


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def exactly(given, heads, mask=None):
    with jax.enable_x64():
        return run(
            lambda q, k, v, heads: reference(q, k, v, heads, mask),
            *(jnp.asarray(np.asarray(x), jnp.float64) for x in given),
            heads,
        )


# One head at a time, two, six of the twelve, all
@pytest.mark.parametrize("chunk", [1, 2 * 5 * 7, 6 * 5 * 7, 2**20])
def test_values_and_gradients_of_chunked_attention(chunk, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    monkeypatch.setattr(attention, "CHUNK_FORWARD", chunk)
    given = arrays(4, 5, 7, 12)
    want = exactly(given, 3)
    close(run(attention.attend_chunked, *given, 3), want)
    close([attention.attend_chunked(*given[:3], 3)], want[:1])  # without a gradient


@pytest.mark.parametrize("rows,queries", [(None, None), (4, 1), (1, 5), (4, 5)])
def test_values_and_gradients_with_a_mask_for_each_row_or_query(rows, queries):
    """No mask, one of the texts' lengths, one for all rows such as a causal one, one for each query
    of each row.
    """
    given = arrays(4, 5, 7, 12)
    mask = rows and np.random.default_rng(4).random((rows, queries, 7)) < 0.6
    mask = None if mask is None else jnp.asarray(mask | (np.arange(7) == 2))  # none without a key
    close(
        run(lambda q, k, v, heads: attention.attend(q, k, v, heads, mask), *given, 3),
        exactly(given, 3, mask),
    )


@pytest.mark.parametrize("keys,masked", [(16, False), (16, True), (7, False), (7, True)])
def test_values_and_gradients_of_what_cudnn_gets(keys, masked, monkeypatch):
    """The number of keys becomes a multiple of 8, and those that are added get no weight."""
    seen = []

    def stand_in(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        seen.append((k.shape, mask is None or mask.shape))
        return jax_attention(q, k, v, mask=mask)

    jax_attention = jax.nn.dot_product_attention
    given = arrays(4, 5, keys, 12)
    mask = jnp.asarray(np.random.default_rng(4).random((4, 1, keys)) < 0.6) if masked else None
    mask = mask if mask is None else mask.at[:, :, 2].set(True)
    want = exactly(given, 3, mask)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    close(run(functools.partial(attention.attend, mask=mask, kind="cudnn"), *given, 3), want)
    full = -(-keys // 8) * 8
    shape = (1 if mask is None else 4, 1, 5, full)
    assert seen == [((4, full, 3, 4), shape if masked or keys < full else True)]


@pytest.mark.parametrize(
    "n,d,kernel",
    [
        pytest.param(256, 128, True, marks=pytest.mark.slow),
        (128, 64, True),
        (256, 64, False),
        (100, 128, False),
    ],
)
def test_values_and_gradients_of_the_attention_of_tpus(n, d, kernel, monkeypatch):
    """The Splash kernel runs in Pallas's interpreter, for gradients only, and where it takes the
    shape; with a mask never.
    """
    calls, splash_attention = [], fused_attention.splash_attention

    def interpreted(q, k, v):
        calls.append(q.shape)
        return splash_attention(q, k, v, interpret=True)

    monkeypatch.setattr(fused_attention, "splash_attention", interpreted)
    heads = 2 if d == 128 else 1 + (not kernel)
    given = arrays(2, n, n, d)
    attend = functools.partial(attention.attend, kind="splash")
    want = exactly(given, heads)
    close([attend(*given[:3], heads)], want[:1])
    assert not calls
    close(run(attend, *given, heads), want)
    assert calls == ([(2, heads, n, d // heads)] if kernel else [])
    mask = jnp.arange(n)[None, None] < 77
    close(run(functools.partial(attend, mask=mask), *given, heads), exactly(given, heads, mask))
    assert len(calls) == kernel


@pytest.mark.parametrize("kind,stored", [("full", True), ("chunked", True), ("chunked", False)])
def test_few_weights_are_not_chunked(kind, stored, monkeypatch):
    """Whether the forward pass stores the 16 x 16 weights of 2 x 3 heads, which are exactly
    CHUNK_ABOVE or one more.
    """
    monkeypatch.setattr(attention, "CHUNK_ABOVE", 2 * 3 * 16 * 16 - (not stored))
    layer = attention.SelfAttention(6, 3, kind, init_std=0.02, dtype=jnp.float32)
    x = jnp.ones((2, 16, 6))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    residuals = jax.eval_shape(lambda p, x: jax.vjp(layer.apply, p, x)[1], params, x)
    assert (max(leaf.size for leaf in jax.tree.leaves(residuals)) == 2 * 3 * 16 * 16) == stored


def test_chunks_are_as_exact_in_half_precision():
    """Both forms are compared with attention in float64."""
    arguments = arrays(2, 6, 6, 8, jnp.bfloat16)
    q, k, v = (np.asarray(x, np.float64).reshape(2, 6, 2, 4).swapaxes(1, 2) for x in arguments[:3])
    scores = q @ k.swapaxes(-1, -2) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(2, 6, 8)
    chunked, full = (run(f, *arguments, 2) for f in (attention.attend_chunked, attention.attend))
    assert [x.dtype for x in chunked] == [x.dtype for x in full] == [jnp.bfloat16] * 4
    error = lambda x: np.abs(np.asarray(x[0], np.float64) - exact).max()
    assert error(chunked) <= 1.5 * error(full) + 1e-6


def test_scores_beyond_the_range_of_the_exponential_function_are_finite():
    q, k, v, g = arrays(1, 4, 4, 4)
    for x in run(attention.attend_chunked, 100 * q, 100 * k, v, g, 1):
        assert np.isfinite(x).all()


def test_the_weights_are_not_stored():
    """The largest array stored for the backward pass, with 2 x 3 heads of 64 x 64 weights each."""
    q, k, v, _ = arrays(2, 64, 64, 12)
    sizes = {}
    for f in (attention.attend, attention.attend_chunked):
        stored = jax.eval_shape(lambda *x, f=f: jax.vjp(lambda *x: f(*x, 3), *x)[1], q, k, v)
        sizes[f] = max(x.size for x in jax.tree.leaves(stored))
    assert sizes[attention.attend] >= 2 * 3 * 64 * 64 > 2 * sizes[attention.attend_chunked]


def test_cross_attention_sows_its_weights_if_intermediates_are_mutable():
    """They are positive, sum to one over the text, are 0 beyond it, and with the values they give
    the output, whose bits do not change.
    """
    layer = attention.CrossAttention(
        width=12, heads=3, kind="full", init_std=0.5, dtype=jnp.float32
    )
    x, text = (
        jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
        for i, shape in enumerate(((2, 5, 12), (2, 7, 9)))
    )
    mask = jnp.arange(7)[None] < jnp.array([[4], [7]])
    stored = layer.init(jax.random.key(0), x, text, mask)
    assert [*stored] == ["params"]
    stored = jax.tree.map(
        lambda p: p + 0.1 * jnp.arange(p.size).reshape(p.shape) / p.size, stored
    )  # biases that are not 0
    apply = jax.jit(layer.apply, static_argnames="mutable")
    out, aux = apply(stored, x, text, mask, mutable="intermediates")
    np.testing.assert_array_equal(out, apply(stored, x, text, mask))
    (weights,) = aux["intermediates"]["attention"]
    assert (
        weights.shape == (2, 3, 5, 7)
        and (np.asarray(weights)[np.broadcast_to(mask[:, None, None], weights.shape)] > 0).all()
    )
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert not np.asarray(weights)[np.broadcast_to(~mask[:, None, None], weights.shape)].any()
    params = stored["params"]
    values = (text @ params["kv"]["kernel"] + params["kv"]["bias"][None, None])[..., 12:].reshape(
        2, 7, 3, 4
    )
    mixed = np.einsum("baqm,bmaf->bqaf", weights, values).reshape(2, 5, 12)
    np.testing.assert_allclose(
        mixed @ params["out"]["kernel"] + params["out"]["bias"][None, None],
        out,
        rtol=1e-5,
        atol=1e-5,
    )
