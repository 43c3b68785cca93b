"""Networks over several groups of codes: embeddings and heads against float64 NumPy, and which
logits depend on which tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.denoiser import Denoiser

G, K, D, T = 2, 3, 8, 4
GRID, L = (2, 2), 4  # rows and columns, positions
SIZES = dict(
    codes=K, groups=G, grid=GRID, width=D, heads=2, mlp_ratio=2, condition="none", init_std=0.5
)


def no_text(z):
    """The condition of a model without one, and its mask."""
    return jnp.zeros(len(z), int), jnp.ones((len(z), 0), bool)


def make(kind, layers=1, **fields):
    """(network, random parameters, a function of its tokens)."""
    if kind == "denoiser":
        network = Denoiser(T=T, layers=layers, **SIZES | fields)
        arguments = lambda z: (z, jnp.full(len(z), 2), *no_text(z))
    else:
        network = Autoregressive(layers=layers, **SIZES | fields)
        shifted = lambda z: jnp.pad(z[:, :-1], ((0, 0), (1, 0)), constant_values=K)
        arguments = lambda z: (shifted(z), *no_text(z))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments(jnp.zeros((1, G * L), int)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes
    )
    run = jax.jit(lambda z: network.apply(params, *arguments(z)))
    return params["params"], lambda z: run(z) if kind == "denoiser" else run(z)[0]


def tokens(masks=True):
    return np.random.default_rng(1).integers(0, K + masks, (2, G * L))


def embedded(p):
    """(tables of the groups (G, K + 1, D), embeddings of the positions (L, D))."""
    place = np.arange(L)
    position = p["rows"]["embedding"][place // 2] + p["columns"]["embedding"][place % 2]
    return p["tokens"]["embedding"].reshape(G, K + 1, D), position


def output(p, x, head):
    """Logits (…, G, K) of the last layer's output."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    if head == "tied":
        tables = p["tokens"]["embedding"].reshape(G, K + 1, D)[:, :K]
        return np.einsum("...d,gkd->...gk", x, tables) + p["head_bias"].reshape(G, K)
    kernel = p["head"]["kernel"].reshape(D, G, K)
    return np.einsum("...d,dgk->...gk", x, kernel) + p["head"]["bias"].reshape(G, K)


@pytest.mark.parametrize("head", ["linear", "tied"])
def test_the_denoiser_sums_the_tokens_of_a_position_and_has_a_head_for_each(head):
    params, run = make("denoiser", layers=0, head=head)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    assert p["tokens"]["embedding"].shape == (G * (K + 1), D)
    (tables, position), z = embedded(p), tokens()
    x = position + sum(tables[g][z[:, g * L : (g + 1) * L]] for g in range(G))
    want = np.moveaxis(output(p, x, head), 2, 1).reshape(2, G * L, K)
    np.testing.assert_allclose(run(z), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "tied"])
def test_the_baseline_embeds_the_token_before_and_the_place_of_the_next(head):
    params, run = make("autoregressive", layers=0, head=head)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    (tables, position), z = embedded(p), tokens(masks=False)
    want = np.zeros((2, G * L, K))
    for i in range(G * L):
        group, before = i // L, max(i - 1, 0) // L
        previous = z[:, i - 1] if i else np.full(2, K)
        x = tables[before][previous] + position[i % L] + p["groups"]["embedding"][group]
        want[:, i] = output(p, x, head)[:, group]
    np.testing.assert_allclose(run(z), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive"])
def test_logits_depend_on_the_tokens_they_may_depend_on(kind):
    _, run = make(kind)
    z = tokens(masks=False)
    plain = np.asarray(run(z))
    for i in range(G * L):
        changed = z.copy()
        changed[:, i] = (z[:, i] + 1) % K
        differs = (np.asarray(run(changed)) != plain).any((0, 2))
        later = np.arange(G * L) > i
        np.testing.assert_array_equal(differs, later if kind == "autoregressive" else True)
