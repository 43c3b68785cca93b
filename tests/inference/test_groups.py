"""A model with two codes a position: what is drawn, edited, explained, planned, exported and
adapted.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from helpers.workdirs import items, make_workdir, same_arrays
from vqd_jax.inference import explain, explain_figure, inpaint, pipeline, plan
from vqd_jax.inference.convert import Extra, convert
from vqd_jax.inference.export import export
from vqd_jax.inference.model import GREY
from vqd_jax.samplers.base import Constraint

G, L, K, PROMPT = 2, 16, 20, ["a google style emoji of a red apple"]
TWO = {"codebook.groups": G, "denoiser.head": "tied"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(
        tmp_path_factory.mktemp("groups") / "model", TWO, stages=("diffusion", "autoregressive")
    )


@pytest.fixture(scope="module")
def model(workdir):
    return pipeline.load(workdir)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_masked_tokens_are_grey_or_left_out(model, image):
    """Grey where the coarse code is masked; without its fine code a position is its coarse one."""
    tokens = model.encode(image[None])
    assert tokens.shape == (1, G * L) and tokens.max() < K
    masked = tokens.copy()
    masked[:, [0, L + 5]] = K
    got = model.decode_partial(masked)
    grey = (got[0] == GREY).all(-1)
    assert grey[:4, :4].all() and grey.sum() == 16
    codes = np.asarray(model.codec_weights["codes"])
    z = codes[tokens[0].reshape(G, L) + [[0], [K]]]
    z[1, 5], z[0, 0] = 0, codes[0]
    decode = jax.jit(lambda p, z: model.codec.model.apply({"params": p}, z, method="decode"))
    want = decode(model.codec_weights["vqvae"], z.sum(0).reshape(1, 4, 4, -1))
    want = np.clip(np.round((np.asarray(want) + 1) * 127.5), 0, 255)
    assert (np.abs(got[0] - want[0])[~grey] <= 1).all()


@pytest.mark.slow  # samplers/test_groups.py has the same promise
def test_known_tokens_of_both_groups_stay(model):
    rng = np.random.default_rng(1)
    mask, tokens = rng.random((1, G * L)) < 0.5, rng.integers(0, K, (1, G * L)).astype(np.int32)
    got = model.tokens(PROMPT, constraint=Constraint(mask, tokens), sampler="counts", calls=3)
    np.testing.assert_array_equal(got[mask], tokens[mask])
    assert got.max() < K and (got[~mask] != tokens[~mask]).any()


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inpainting_keeps_the_rest(model, image, strength):
    """In a window and in several; what is repainted has new codes of both groups."""
    wide = np.concatenate([image, image[:, ::-1]], axis=1)
    mask = np.zeros((16, 32), bool)
    mask[4:12, 4:28] = True
    edit = inpaint.EditImage(wide, mask)
    got = inpaint.edit(
        model, edit, PROMPT, strength=strength, sampler="counts", calls=3, order="confidence"
    )
    changed = (got[0] != wide).any(-1)
    assert changed[mask].mean() > 0.5 and not changed[~mask].any()


@pytest.mark.slow
def test_an_explanation_has_tokens_and_positions(model, tmp_path):
    explanation = explain.explain(model, PROMPT[0], sampler="counts", calls=3)
    assert explanation.states.shape == (4, G * L) and explanation.confidence.shape == (3, G * L)
    assert explanation.groups == G and {w.attention.shape for w in explanation.words[0]} == {(L,)}
    total = sum(word.attention for word in explanation.words[0])
    np.testing.assert_allclose(total, 1, rtol=1e-4)
    pytest.importorskip("matplotlib")
    explain_figure.draw(explanation, PROMPT[0], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_maps_of_an_explanation_have_the_groups_side_by_side():
    square = explain_figure._side_by_side(np.arange(8.0), 2, -1.0)
    np.testing.assert_array_equal(square, [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7]])
    np.testing.assert_array_equal(
        explain_figure._side_by_side(np.arange(4), 1, 0.0), [[0, 1], [2, 3]]
    )


def nats(known):
    """Made-up cross-entropies of 2 x 4 tokens: they fall with the number of known tokens, and those
    of fine tokens also with their coarse ones.
    """
    known = known.reshape(*known.shape[:-1], G, 4)
    share = known.sum((-1, -2))[..., None]
    coarse = np.array([3.0, 4, 5, 6]) - 0.2 * share
    fine = np.array([2.0, 1, 2, 1]) - 0.1 * share + 1.5 * ~known[..., 0, :]
    return np.where(known, 0, np.stack([coarse, fine], axis=-2)).reshape(*share.shape[:-1], -1)


def test_a_plan_is_measured_in_the_orders_of_the_samplers(model, monkeypatch):
    """Against all 8! orders, the tokens of each position sorted from coarse to fine."""
    monkeypatch.setattr(
        plan.jitted, "cross_entropy", lambda stage, weights, z_0, ids, known, t: nats(known)
    )
    images = 2_000
    got = plan.measure(model, np.zeros((images, 8), np.int32), ["x"] * images, points=9)
    orders = np.array([*itertools.permutations(range(8))])
    ranks = np.sort(orders.reshape(-1, G, 4), axis=1).reshape(-1, 8)
    tokens = ranks.argsort(1)
    want = np.zeros((8, 8))
    for known in range(8):
        each = np.take_along_axis(nats(ranks < known), tokens, axis=1).mean(0)
        want[known, known:] = each[known:]
    np.testing.assert_allclose(got["random"], want, atol=0.06)
    coarse, fine = got["halton"][:4, :4], got["halton"][:4, 4:]
    np.testing.assert_allclose(
        coarse[np.triu_indices(4)], 4.5 - 0.2 * np.triu_indices(4)[0], atol=0.15
    )
    waits = np.arange(4)[:, None] <= np.arange(4)
    np.testing.assert_allclose(fine, 1.5 - 0.1 * np.arange(4)[:, None] + 1.5 * waits, atol=0.15)
    assert (np.tril(got["halton"], -1) == 0).all() and (np.diagonal(got["halton"]) > 0).all()


@pytest.mark.slow
def test_a_plan_of_the_model_is_used(model, image, tmp_path):
    entropy = plan.measure(model, model.encode(image[None]), PROMPT, points=4)
    assert {name: values.shape for name, values in entropy.items()} == {
        "random": (G * L, G * L),
        "halton": (G * L, G * L),
    }
    planned = dataclasses.replace(model, entropy=lambda: entropy)
    for order in entropy:
        sampler, _ = planned.settings(sampler="counts", calls=5, order=order, counts="planned")
        assert sum(sampler.counts) == G * L and len(sampler.counts) == 5
        assert planned.tokens(PROMPT, sampler="counts", calls=5, order=order).max() < K


@pytest.mark.slow
def test_the_baseline_draws_a_token_a_call(workdir):
    model = pipeline.load(workdir, stage="autoregressive")
    tokens, states = model.tokens(PROMPT, trace=True)
    assert tokens.shape == (1, G * L) and states.shape == (G * L, 1, G * L)
    shown = np.arange(G * L)[:, None] >= np.arange(G * L)
    np.testing.assert_array_equal(states[:, 0], np.where(shown, tokens, K))
    assert model.decode(tokens).shape == (1, 16, 16, 3)


@pytest.mark.slow
def test_an_exported_file_is_the_model_again(workdir, tmp_path):
    export(workdir, "safetensors", tmp_path / "model.safetensors")
    convert(str(tmp_path / "model.safetensors"), tmp_path / "back", Extra())
    for stage in ("vqvae", "diffusion", "autoregressive"):
        (_, one), (_, two) = items(workdir, stage), items(tmp_path / "back", stage)
        same_arrays(one["weights"], two["weights"])
        assert two["config"]["codebook"]["groups"] == G
    assert items(tmp_path / "back", "vqvae")[1]["weights"]["codes"].shape == (G * K, 6)
