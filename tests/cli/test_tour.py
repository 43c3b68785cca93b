"""docs/tour.md: the sampler that it writes does what it says there, and is as short."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.diffusion import schedules
from vqd_jax.inference import pipeline
from vqd_jax.samplers.base import Constraint, sample_loop

CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "tour.md").read_text(), re.DOTALL)[1]
CRABS = ["a twitter style emoji of a crab"] * 3


@pytest.fixture(scope="module")
def sampler():
    """The class, without the lines that draw."""
    names = {"__name__": "tour"}
    exec(CODE.partition("model = ")[0], names)
    return names["Cosine"]


@pytest.fixture(scope="module")
def model():
    return pipeline.load(ROOT / "pretrained" / "emoji")


def test_the_sampler_has_twenty_lines():
    assert len([line for line in CODE.partition("model = ")[0].splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("schedule", ["paper", "absorbing"])
@pytest.mark.parametrize("calls", [1, 5, 8])
def test_it_reveals_as_many_as_it_says_and_keeps_them(sampler, schedule, calls):
    process, n, told = getattr(schedules, schedule)(20, 4), 16, []
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))

    def denoise(z, t):
        jax.debug.callback(told.append, t[0], ordered=True)
        return jnp.zeros((*z.shape, 4))

    one = sampler(calls)
    start = one.start(keys, process, n)
    end, states = jax.jit(lambda keys: sample_loop(one, keys, process, denoise, start, trace=True))(
        keys
    )
    states = np.concatenate([start[None], states])
    left = [round(n * np.cos(np.pi / 2 * j / calls)) for j in range(calls + 1)]
    for state, count in zip(states, left, strict=True):
        assert ((state == process.k).sum(1) == count).all()
    for before, after in zip(states, states[1:]):
        assert (after[before != process.k] == before[before != process.k]).all()
    assert (end[0] != end[1]).any() and (end < process.k).all()
    jax.effects_barrier()
    masked = 1 - np.asarray(process.unmasked)
    assert len(told) == calls and all(
        abs(masked[t] - count / n) == abs(masked - count / n).min() for t, count in zip(told, left)
    )


def test_it_begins_where_the_process_is(sampler):
    process, n = schedules.paper(20, 4), 40
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))
    for begin in (1, 7, 20):
        at_begin = sampler(4).noised(keys, process, jnp.zeros((3, n), jnp.int32), begin)
        first = sampler(4).plan(process, n, begin)[0].coefficients[0]
        left = n * (1 - process.unmasked[begin]) / (1 - process.unmasked[-1])
        np.testing.assert_allclose((at_begin == process.k).sum(1), left, atol=1)
        assert abs(first - left * np.cos(np.pi / 8)) <= 0.5


@pytest.mark.slow  # 7 s
def test_all_else_works_with_it(sampler, model):
    """The public interface takes it where a name may stand: it is drawn, watched, repainted and
    varied with.
    """
    asked = dict(
        sampler=sampler(4), seed=3, guidance=2.0, negative_prompt="a tree", temperature=2.0
    )
    tokens = model.tokens(CRABS, **asked)
    np.testing.assert_array_equal([*model.watch(CRABS, **asked)][-1][0], tokens)
    np.testing.assert_array_equal(model(CRABS, output="np", **asked), model.decode(tokens))
    known = Constraint(np.arange(64)[None].repeat(3, 0) < 20, tokens)
    again = model.tokens(CRABS, **asked | {"seed": 4}, constraint=known, image=tokens, strength=0.5)
    np.testing.assert_array_equal(again[:, :20], tokens[:, :20])
    assert (again != tokens).any()


def test_it_is_told_its_calls_itself(sampler, model):
    for beside, name in (({"calls": 4}, "calls"), ({"order": "halton"}, "order")):
        with pytest.raises(UserError, match=f"a sampler object has its own {name}: set it there"):
            model(CRABS, sampler=sampler(4), **beside)
