"""The published models have the published numbers of parameters; traced only, nothing is allocated."""

import math

import jax
import jax.numpy as jnp
import pytest

from vqd_jax.config import build, paper
from vqd_jax.config.defaults import defaults
from vqd_jax.data.text.labels import Nothing
from vqd_jax.train.dry_run import StubTokenizer


def text(size):
    def change(c):
        paper.codec(c, 8, 2887)
        paper.text(c)
        size(c)

    return change


def ithq(c):
    paper.ithq_codec(c)
    paper.text(c)
    paper.large(c)


def mean_class(c):
    paper.imagenet(c)
    c.condition.null = "empty"


@pytest.mark.parametrize(
    "change,null,parameters",
    [
        (text(paper.small), 77 * 512, 35_936_647),
        pytest.param(text(paper.base), 77 * 512, 388_780_871, marks=pytest.mark.slow),  # 8 s
        pytest.param(ithq, 77 * 512, 1_359_274_624, marks=pytest.mark.slow),  # 12 s
        (paper.imagenet, 0, 518_037_966),
        (mean_class, 0, 518_025_678),
        (paper.ffhq, 0, 411_185_664),
    ],
    ids=["S", "B", "ITHQ", "ImageNet", "ImageNet, mean null", "FFHQ"],
)
def test_the_published_numbers(change, null, parameters):
    c = defaults()
    c.denoiser.scan = True  # one layer is traced, not all
    change(c)
    tokenizer = {
        "text": StubTokenizer(49408, 77),
        "class": StubTokenizer(1000, 1),
        "none": Nothing(),
    }[c.condition.kind]
    stage = build.diffusion_stage(c, tokenizer)
    params, _ = jax.eval_shape(
        stage.init,
        jax.random.key(0),
        {"text": jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32)},
    )
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    assert count(params["denoiser"]) == parameters
    assert count(params["conditioner"].get("null", {})) == null
    if (
        c.denoiser.mlp == "fc"
    ):  # the baseline has two plain norms per layer where the denoiser has tables of times
        twin, _ = jax.eval_shape(
            build.autoregressive_stage(c, tokenizer).init,
            jax.random.key(0),
            {"text": jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32)},
        )
        d = c.denoiser.width
        adaptive = (c.process.T * d if c.denoiser.time == "learned" else 0) + 2 * d * d + 2 * d
        assert count(twin["autoregressive"]) == parameters - 2 * c.denoiser.layers * (
            adaptive - 2 * d
        )
    if null:
        released = c.copy_and_resolve_references()
        paper.released(released)
        params, _ = jax.eval_shape(
            build.diffusion_stage(released, tokenizer).init,
            jax.random.key(0),
            {"text": jax.ShapeDtypeStruct((1, 77), jnp.int32)},
        )
        assert "null" not in params["conditioner"] and count(params["denoiser"]) == parameters
