"""What the compiled samplers cost: one loop that calls the network, the operations of its products,
and no array of all classes' values.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from vqd_jax.config import build
from vqd_jax.config.defaults import defaults
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.samplers.released import PriorRule, ReleasedFast
from vqd_jax.stages.token_stage import Conditioning
from vqd_jax.train.cost.program import instructions

ROWS, LENGTH, TOKENS, CODES, WIDTH, LAYERS = 3, 5, 16, 23, 32, 2
PLAIN, GUIDED = StaticGuidance(), StaticGuidance(guided=True)
# (a sampler of seven calls, number of loops: one for each phase)
SAMPLERS = {
    "ancestral": (Ancestral(calls=7), 1),
    "remask": (Remask(calls=7), 1),
    "halton": (Counts(calls=7, order="halton"), 1),
    "polished": (Counts(calls=7, order="confidence", polish=2), 2),
    "released_fast": (ReleasedFast(calls=7), 1),
    "prior_rule": (PriorRule(calls=7), 1),
}


# the others compile the same loop with another update, five seconds each
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (n != "ancestral")) for n in SAMPLERS]


def shape(*s, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(s, dtype)


@pytest.fixture(scope="module")
def stages():
    c = defaults()
    c.data.image_size, c.process.T, c.codebook.codes = 16, 12, CODES
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads = LAYERS, WIDTH, 2
    c.learned_text.width, c.learned_text.heads, c.learned_text.length, c.learned_text.vocabulary = (
        WIDTH,
        2,
        LENGTH,
        300,
    )
    tokenizer = build.BytePair.train(["a red apple"], vocabulary=300, length=LENGTH)
    return c, {name: make(c, tokenizer) for name, make in build.TOKEN_STAGES.items()}


def compiled(stage, sampler, static_guidance, window=None):
    """The compiled program that samples ROWS images, with `window` the one that a watch runs."""
    tokens, ids = shape(ROWS, TOKENS, dtype=jnp.int32), shape(ROWS, LENGTH, dtype=jnp.int32)
    params, _ = jax.eval_shape(stage.init, jax.random.key(0), {"text": ids, "tokens": tokens})
    conditions = (
        shape(2, ROWS, LENGTH, dtype=jnp.int32),
        shape(2, ROWS, dtype=jnp.bool),
    )  # a prompt, and none
    dynamic = {"scales": shape(1, ROWS), "temperature": shape(), "top_p": shape()}

    def program(params, bits, ids, drop, dynamic, **window):
        return stage.sample(
            params,
            jax.vmap(jax.random.wrap_key_data)(bits),
            Conditioning(ids, drop),
            dynamic,
            sampler,
            static_guidance,
            **window,
        )

    window = {"window": (shape(dtype=jnp.int32),) * 2, "z": tokens} if window else {}
    bits = shape(ROWS, 2, dtype=jnp.uint32)
    return jax.jit(program).lower(params, bits, *conditions, dynamic, **window).compile()


def flop(program):
    """Of all matrix products, two for each multiply and add, as often as they run."""
    total = 0
    for x in instructions(program):
        if x.operation == "kDot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", x.text)[1].split(",")
            ((_, left),), ((_, out),) = x.operands[0], x.result
            total += x.times * 2 * math.prod(out) * math.prod(left[int(i)] for i in contracted)
    return total


def of_all_classes(program):
    """Arrays with a value for each token and class, including [MASK]."""
    return re.findall(
        rf"f32\[[\d,]*\b{TOKENS},{CODES + 1}\]|f32\[[\d,]*\b{CODES + 1},{TOKENS}\]",
        program.as_text(),
    )


def network_loops(program):
    """The number of loops whose bodies have matrix products."""
    products = (x for x in instructions(program) if x.operation == "kDot")
    return len({body for x in products for body in x.loops})


def of_self_attention():
    """FLOP of the self-attention of a layer, for one image."""
    n, d = TOKENS, WIDTH
    return 2 * (n * d * 3 * d + 2 * n * n * d + n * d * d)


def of_a_call(c):
    """FLOP of one call of the denoiser for one image, with keys and values of the text ready: two
    for each multiply and add.
    """
    n, d, m = TOKENS, WIDTH, LENGTH
    attention = n * d * 3 * d + 2 * n * n * d + n * d * d
    across = n * d * d + 2 * n * m * d + n * d * d
    return 2 * (
        LAYERS * (attention + across + 2 * n * d * c.denoiser.mlp_ratio * d) + n * d * CODES
    )


@pytest.fixture(scope="module")
def ancestral(stages):
    """FLOP of seven and of nine ancestral calls."""
    return [
        flop(compiled(stages[1]["diffusion"], Ancestral(calls=calls), PLAIN)) for calls in (7, 9)
    ]


def test_a_call_has_the_operations_counted_by_hand(stages, ancestral):
    c, _ = stages
    seven, nine = ancestral
    assert (nine - seven) / 2 == pytest.approx(ROWS * of_a_call(c), rel=0.02)
    assert (
        0 < seven - 7 * ROWS * of_a_call(c) < ROWS * of_a_call(c)
    )  # the text, its keys and values, the tables of time: once


@pytest.mark.parametrize("name", EACH)
def test_a_sampler_is_a_loop_of_network_calls(name, stages, ancestral):
    _, both = stages
    sampler, loops = SAMPLERS[name]
    program = compiled(both["diffusion"], sampler, PLAIN)
    assert network_loops(program) == loops
    assert flop(program) == pytest.approx(ancestral[0], rel=0.02)
    assert not of_all_classes(program)


@pytest.mark.parametrize("name", EACH)
def test_calls_in_a_window_cost_the_same(name, stages, ancestral):
    """One loop per phase, even for a single call. The compiler does not know how often a loop runs,
    so its body counts once.
    """
    c, both = stages
    sampler, (seven, nine) = SAMPLERS[name][0], ancestral
    program = compiled(both["diffusion"], sampler, PLAIN, window=True)
    loops = len(sampler.plan(both["diffusion"].process, TOKENS, c.process.T))
    assert network_loops(program) == loops and not of_all_classes(program)
    assert flop(program) == pytest.approx(seven - (7 - loops) * (nine - seven) / 2, rel=0.02)


@pytest.mark.slow  # compiles for five seconds
@pytest.mark.parametrize("learned_null", [False, True])
def test_guidance_is_a_call_of_two_rows_for_an_image(learned_null, stages, ancestral):
    """The first self-attention, before the text, is computed once for both."""
    c, both = stages
    guided = dataclasses.replace(GUIDED, learned_null=learned_null)
    program = compiled(both["diffusion"], Ancestral(calls=7), guided)
    want = 2 * ancestral[0] - 7 * ROWS * of_self_attention()
    seven, nine = ancestral
    once = seven - 7 * (nine - seven) / 2  # the text encoder, keys and values, tables of time
    if learned_null:  # does not pass through the text encoder
        assert want - once < flop(program) < want - 0.1 * once
    else:
        assert flop(program) == pytest.approx(want, rel=0.02)
    assert network_loops(program) == 1


@pytest.mark.slow  # compiles for four seconds
def test_the_autoregressive_baseline_is_one_loop(stages):
    _, both = stages
    assert network_loops(compiled(both["autoregressive"], AutoregressiveSampler(), PLAIN)) == 1
