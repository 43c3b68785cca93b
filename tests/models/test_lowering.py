"""Every program of training and sampling lowers for TPU and CUDA, which needs no device.

The quick tests lower in bfloat16, the dtype of accelerators; those in float32, and without guidance, are slow.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.config import build
from vqd_jax.config.defaults import defaults
from vqd_jax.core.pace import Pace
from vqd_jax.models.lpips import LPIPS
from vqd_jax.runtime.devices import building_for
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Constraint
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.samplers.released import PriorRule, ReleasedFast
from vqd_jax.stages.token_stage import Conditioning
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step

ROWS, LENGTH, CODES = 2, 5, 22


@pytest.fixture(
    scope="module", params=[pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def stages(request):
    """A small config in which every term is on, its stages, and the shapes of their parameters."""
    c = defaults()
    c.data.image_size = 16
    c.vqvae.channels, c.vqvae.latent_width, c.vqvae.middle_attention = 8, 8, True
    c.vqvae.attention_resolutions = (8,)
    c.codebook.codes, c.codebook.width = CODES, 4
    c.discriminator.width, c.discriminator.layers = 4, 1
    c.vqvae_loss.lpips = c.vqvae_loss.adversarial = 0.1
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads, c.denoiser.dropout = 2, 16, 2, 0.1
    c.learned_text.width, c.learned_text.heads, c.learned_text.length, c.learned_text.vocabulary = (
        16,
        2,
        LENGTH,
        300,
    )
    c.diffusion_loss.adaptive_auxiliary = True
    c.vqvae.dtype = c.denoiser.dtype = request.param
    c.denoiser.attention = "full"  # as on accelerators
    tokenizer = build.BytePair.train(["a red apple"], vocabulary=300, length=LENGTH)
    makers = build.TOKEN_STAGES.items()
    all_ = {"vqvae": build.vqvae_stage(c)} | {name: make(c, tokenizer) for name, make in makers}
    init = lambda stage: jax.eval_shape(stage.init, jax.random.key(0), batch())
    return c, all_, {name: init(stage) for name, stage in all_.items()}


def shape(*s, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(s, dtype)


def batch():
    return {
        "image": shape(ROWS, 16, 16, 3, dtype=jnp.uint8),
        "text": shape(ROWS, LENGTH, dtype=jnp.int32),
        "tokens": shape(ROWS, 16, dtype=jnp.int32),
    }


def lower(program, *args):
    """Exports for TPU and CUDA at once; key arguments are given as their bits."""
    with building_for("gpu"):
        exported = jax.export.export(jax.jit(program), platforms=("tpu", "cuda"))(*args)
    assert exported.platforms == ("tpu", "cuda")
    return exported


KEY = shape(2, dtype=jnp.uint32)


def check_dtype(exported, dtype, products):
    """In a bfloat16 model the products of the large networks are bfloat16 (those of text encoder and
    LPIPS are not), and the results are not.
    """
    lines = [
        line
        for line in exported.mlir_module().splitlines()
        if any(f"stablehlo.{p}" in line for p in products)
    ]
    assert lines
    half = sum("bf16" in line.split("->")[-1] for line in lines)
    assert (half > len(lines) / 3) if dtype == "bfloat16" else half == 0
    assert all(out.dtype in (jnp.float32, jnp.int32, jnp.uint8) for out in exported.out_avals)


def check_sums(exported):
    """All sums over rows or positions are float32: those of gradients (of biases, of AdaLN, of
    embeddings by index) and of the codebook's averages. So are the logits, and the products of the
    search for the nearest code, which have the highest precision.
    """
    text = exported.mlir_module()
    sums = re.findall(r"stablehlo\.reduce\(.* applies stablehlo\.add .*", text)
    scatters = re.findall(r'"stablehlo\.scatter"\(.*?\}\) : .*?\n', text, re.DOTALL)
    assert sums and not [line for line in sums + scatters if "bf16" in line]
    products = re.findall(r"stablehlo\.dot_general .*", text)
    codes = [line for line in products if re.search(rf"-> tensor<[\dx]*x{CODES}xf32>", line)]
    assert len(codes) >= 1 and not [x for x in products if re.search(rf"-> .*x{CODES}xbf16", x)]
    return codes


@pytest.mark.parametrize(
    "name",
    ["diffusion", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vqvae", "autoregressive"))],
)
def test_the_training_step(name, stages):
    c, all_, trees = stages
    params, extra = trees[name]
    optimizer = Optim(**c.vqvae_optim if name == "vqvae" else c.diffusion_optim).build(
        100 * ROWS, Pace(ROWS)
    )
    state = State(
        step=shape(dtype=jnp.int32),
        params=params,
        ema=params,
        opt_state=jax.eval_shape(optimizer.init, params),
        extra=extra,
    )
    frozen = {}
    if name == "vqvae":
        image = shape(ROWS, 16, 16, 3)
        frozen = {"lpips": jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"]}
    step = make_step(all_[name], optimizer, 0.99)
    exported = lower(
        lambda state, frozen, batch, bits: step(
            state, frozen, batch, jax.random.wrap_key_data(bits)
        ),
        state,
        frozen,
        batch(),
        KEY,
    )
    check_dtype(
        exported, c.denoiser.dtype, ("convolution",) if name == "vqvae" else ("dot_general",)
    )
    codes = check_sums(exported)
    if name == "vqvae":
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in codes)
    before, after = jax.tree.leaves(state), exported.out_avals[: len(jax.tree.leaves(state))]
    assert [(x.shape, x.dtype) for x in before] == [(x.shape, x.dtype) for x in after]


PLAIN, ALL = (
    StaticGuidance(),
    StaticGuidance(guided=True, ramp=True, guidance_below=0.5, truncated=True, top_k=3),
)
SAMPLERS = [
    pytest.param(Ancestral(calls=7), PLAIN, marks=pytest.mark.slow),
    (Ancestral(calls=7), ALL),
    pytest.param(Remask(calls=7), PLAIN, marks=pytest.mark.slow),
    pytest.param(Counts(calls=7, order="halton"), PLAIN, marks=pytest.mark.slow),
    pytest.param(Counts(calls=7, order="confidence", polish=2), ALL, marks=pytest.mark.slow),
    pytest.param(ReleasedFast(calls=7), PLAIN, marks=pytest.mark.slow),
    (PriorRule(calls=7), ALL),
]


@pytest.mark.parametrize("sampler,static_guidance", SAMPLERS)
def test_every_sampler(sampler, static_guidance, stages):
    c, exported, text, again = lowered("diffusion", stages, sampler, static_guidance)
    more = again(sampler=dataclasses.replace(sampler, calls=9)).mlir_module()
    assert more.count("stablehlo.dot_general") == text.count(
        "stablehlo.dot_general"
    )  # one body for all calls of a kind
    states = CODES + 1
    assert f"x{states}x" not in text.replace(
        f"tensor<{states}x{c.denoiser.width}x", ""
    )  # no (b, n, k + 1) tensor


@pytest.mark.parametrize(
    "static_guidance", [pytest.param(PLAIN, marks=pytest.mark.slow), ALL], ids=["plain", "all"]
)
@pytest.mark.slow  # 4 s
def test_the_autoregressive_sampler(static_guidance, stages):
    _, all_, trees = stages
    _, _, text, _ = lowered("autoregressive", stages, AutoregressiveSampler(), static_guidance)
    rows = batch()["tokens"], batch()["text"], shape(ROWS, dtype=jnp.bool)
    once = lower(all_["autoregressive"].predict, trees["autoregressive"][0], *rows)
    products = lambda text: text.count("stablehlo.dot_general")
    assert (
        products(text) <= 2 * products(once.mlir_module()) + 2 * static_guidance.guided
    )  # the first call, and one body for the 15 others


def lowered(name, stages, sampler, static_guidance):
    """Lowers sampling: (config, export, its text, a function that lowers it with another sampler)."""
    c, all_, trees = stages
    prompts = 3 if static_guidance.guided else 1

    def program(params, bits, ids, drop, dynamic, constraint, sampler=sampler):
        keys = jax.vmap(jax.random.wrap_key_data)(bits)
        return all_[name].sample(
            params,
            keys,
            Conditioning(ids, drop),
            dynamic,
            sampler,
            static_guidance,
            constraint=constraint,
        )

    conditions = (
        shape(prompts + 1, ROWS, LENGTH, dtype=jnp.int32),
        shape(prompts + 1, ROWS, dtype=jnp.bool),
    )
    dynamic = {"scales": shape(prompts, ROWS), "temperature": shape(), "top_p": shape()}
    constraint = Constraint(shape(ROWS, 16, dtype=jnp.bool), shape(ROWS, 16, dtype=jnp.int32))
    arguments = trees[name][0], shape(ROWS, 2, dtype=jnp.uint32), *conditions, dynamic, constraint
    exported = lower(program, *arguments)
    check_dtype(exported, c.denoiser.dtype, ("dot_general",))
    assert [x.shape for x in exported.out_avals] == [(ROWS, 16)]
    return (
        c,
        exported,
        exported.mlir_module(),
        lambda **other: lower(functools.partial(program, **other), *arguments),
    )


def test_encode_and_decode(stages):
    c, all_, trees = stages
    codec = all_["vqvae"]
    weights = jax.eval_shape(codec.weights_of, *trees["vqvae"])
    encode = lower(codec.encode, weights, batch()["image"])
    check_dtype(encode, c.vqvae.dtype, ("convolution",))
    assert [(x.shape, x.dtype) for x in encode.out_avals] == [((ROWS, 16), jnp.int32)]
    decode = lower(codec.decode, weights, batch()["tokens"])
    check_dtype(decode, c.vqvae.dtype, ("convolution",))
    assert [(x.shape, x.dtype) for x in decode.out_avals] == [((ROWS, 16, 16, 3), jnp.uint8)]


@pytest.mark.parametrize("name", ["diffusion", "autoregressive"])
def test_the_bound(name, stages):
    _, all_, trees = stages
    program = lambda params, bits, tokens, ids: all_[name].bound(
        params, jax.vmap(jax.random.wrap_key_data)(bits), tokens, ids, 3
    )
    exported = lower(
        program,
        trees[name][0],
        shape(ROWS, 2, dtype=jnp.uint32),
        batch()["tokens"],
        batch()["text"],
    )
    assert [(x.shape, x.dtype) for x in exported.out_avals] == [((ROWS,), jnp.float32)]


def test_what_cannot_run_there_is_found():
    def program(x):
        return jax.pure_callback(np.sin, x, x)

    with pytest.raises(Exception):  # noqa: B017 - whichever error this version of jax raises
        lower(program, shape(3)).serialize()
