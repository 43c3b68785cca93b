"""The measurement behind plans on the shipped model, what is kept of it, and pictures that follow
it.
"""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.shipped import SHIPPED
from vqd_jax.core.errors import UserError
from vqd_jax.inference import pipeline, plan
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.samplers.base import masked_count
from vqd_jax.samplers.call_planner import best_counts, random_order_cost

CAPTIONS = [
    "a google style emoji of a red apple",
    "a twitter style emoji of a dog",
    "an openmoji style emoji of a tree",
]


@pytest.fixture(scope="module")
def entropy(model):
    tokens = model.tokens(CAPTIONS, calls=10)
    return plan.measure(model, tokens, CAPTIONS, points=5)


def test_knowing_more_makes_tokens_more_certain(entropy):
    assert entropy["random"].shape == (64,) and entropy["halton"].shape == (64, 64)
    assert (np.diff(entropy["random"]) <= 0).all() and (
        np.diff(entropy["halton"], axis=0) <= 0
    ).all()
    assert 0 < entropy["random"][-1] < entropy["random"][0] < np.log(512) * 2


def test_the_first_number_is_the_cross_entropy_without_any_token(model, entropy):
    """From a pass through the network put together by hand."""
    tokens = model.tokens(CAPTIONS, calls=10)
    masked = np.full_like(tokens, 512)
    logits = np.asarray(
        model.stage.predict(
            model.weights,
            jnp.asarray(masked),
            jnp.full(3, 100),
            jnp.asarray(model.tokenizer(CAPTIONS)),
            jnp.zeros(3, bool),
        ),
        np.float64,
    )
    log_p = logits - np.logaddexp.reduce(logits, axis=-1)[..., None]
    want = -np.take_along_axis(log_p, tokens[..., None], axis=-1).mean()
    np.testing.assert_allclose(entropy["random"][0], want, rtol=1e-3)
    np.testing.assert_allclose(entropy["halton"][0].mean(), want, rtol=1e-3)


def test_what_is_measured_is_what_is_not_known(model, monkeypatch):
    """A network that is surer the more it knows, and certain of what it is shown."""

    def cross_entropy(stage, weights, z_0, ids, known, t):
        return np.where(known, 0.0, 5 - 0.05 * known.sum(1, keepdims=True))

    monkeypatch.setattr(plan.jitted, "cross_entropy", cross_entropy)
    measured = plan.measure(model, np.zeros((3, 64), np.int32), CAPTIONS, points=7)
    known = np.arange(64)
    np.testing.assert_allclose(measured["random"], 5 - 0.05 * known)
    np.testing.assert_allclose(
        measured["halton"], np.triu(np.broadcast_to(5 - 0.05 * known[:, None], (64, 64)))
    )


@pytest.mark.slow  # 5 s
def test_a_kept_plan_is_used_and_a_damaged_one_named(tmp_path, model, entropy):
    workdir = tmp_path / "emoji"
    shutil.copytree(SHIPPED, workdir)
    Workdir(workdir).plan.unlink(missing_ok=True)
    bare = pipeline.load(workdir)
    with pytest.raises(UserError, match="no plan for the order 'random' in this workdir"):
        bare(["a dog"], sampler="counts", calls=7, counts="planned")
    np.savez(Workdir(workdir).plan, **entropy)
    planned = pipeline.load(workdir)
    sampler, _ = planned.settings(sampler="counts", calls=7, counts="planned")
    assert sampler.counts == best_counts(random_order_cost(entropy["random"]), 7)[0]
    assert (
        planned.settings(sampler="counts", calls=7)[0] == sampler
        and bare.settings(sampler="counts", calls=7)[0].counts == "uniform"
    )
    later, _ = planned.settings(sampler="counts", calls=7, t_start=50)
    assert sum(later.counts) == masked_count(planned.process, 64, 50) < 64
    stored, _ = bare.settings(sampler="counts", calls=7, t_start=50, counts=[*later.counts])
    assert stored == later  # as a PNG file stores it
    np.savez(tmp_path / "other.npz", random=entropy["random"] ** 2)
    other = pipeline.load(workdir, tmp_path / "other.npz")
    assert (
        other.settings(sampler="counts", calls=7)[0].counts
        == best_counts(random_order_cost(entropy["random"] ** 2), 7)[0]
    )
    with pytest.raises(UserError, match="there is no plan .*missing.npz"):
        pipeline.load(workdir, tmp_path / "missing.npz")
    tokens = planned.tokens(["a dog"], sampler="counts", calls=7, counts="planned", order="halton")
    assert tokens.shape == (1, 64) and tokens.max() < 512
    for values in (
        np.ones(63),
        np.ones((64, 63)),
        np.ones(()),
        np.full(64, np.nan),
        np.ones(64, int),
    ):
        np.savez(Workdir(workdir).plan, random=values)
        with pytest.raises(UserError, match="plan.npz does not fit this model: its 'random' is an"):
            pipeline.load(workdir).settings(sampler="counts")
    Workdir(workdir).plan.write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(UserError, match="plan.npz is damaged"):
        pipeline.load(workdir).settings(sampler="counts")
    with pytest.raises(UserError, match="plan.npz is damaged"):
        pipeline.load(workdir, Workdir(workdir).plan)
    pipeline.load(workdir).settings(sampler="ancestral")  # which needs none


def test_the_picture_of_a_plan(tmp_path, entropy):
    pytest.importorskip("matplotlib")
    plan.draw(entropy, 8, tmp_path / "plan.png")
    from PIL import Image

    pixels = np.asarray(Image.open(tmp_path / "plan.png").convert("RGB"))
    assert pixels.shape[1] > 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
