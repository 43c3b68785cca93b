"""Guidance, temperature and truncation against hand-worked numbers and a plain implementation by
sorting.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.samplers import guidance
from vqd_jax.samplers.guidance import (
    GuidanceConfig,
    apply_temperature,
    blend,
    ramp_scale,
    top_k_filter,
    top_p_filter,
)


def logits(scale=1.0, k=50, b=3, n=4, seed=0):
    return scale * jax.random.normal(jax.random.key(seed), (b, n, k))


def probabilities(x):
    return np.asarray(jax.nn.softmax(x), np.float64)


def one(p):
    return jnp.log(jnp.asarray(p, jnp.float32))[None, None]


def guide(x, null, scale):
    """One prompt."""
    return guidance.guide(
        x[None], null, jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (1, x.shape[0]))
    )


def test_guidance_by_hand():
    """p = (0.8, 0.2), null = (0.5, 0.5), scale 2: p^2 / null is 1.28 to 0.08, 16 to 1."""
    got = probabilities(guide(one([0.8, 0.2]) + 3.0, one([0.5, 0.5]) - 7.0, 2.0))
    np.testing.assert_allclose(got[0, 0], [16 / 17, 1 / 17], rtol=1e-5)
    got = probabilities(guide(one([0.8, 0.2]), one([0.1, 0.9]), 0.5))  # half way: geometric means
    np.testing.assert_allclose(
        got[0, 0], np.sqrt([0.08, 0.18]) / np.sqrt([0.08, 0.18]).sum(), rtol=1e-5
    )


def test_guidance_of_one_is_the_conditional_and_of_zero_the_null():
    x, null = logits(), logits(seed=1)
    np.testing.assert_allclose(guide(x, null, 1.0), jax.nn.log_softmax(x), atol=1e-6)
    np.testing.assert_allclose(guide(x, null, 0.0), jax.nn.log_softmax(null), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_a_power(temperature):
    x = logits()
    want = probabilities(x) ** (1 / temperature)
    got = np.exp(apply_temperature(x + 5.0, temperature))
    np.testing.assert_allclose(got, want / want.sum(-1, keepdims=True), rtol=1e-4)


def test_low_temperatures_approach_the_mode():
    x = logits()
    assert (np.exp(apply_temperature(x, 1e-3)).max(-1) > 0.999).all()
    np.testing.assert_array_equal(apply_temperature(x, 1e-3).argmax(-1), x.argmax(-1))


def by_sorting(p, top_p):
    """True for the smallest set of codes whose mass reaches top_p."""
    keep = np.zeros(p.shape, bool)
    for row, out in zip(p.reshape(-1, p.shape[-1]), keep.reshape(-1, p.shape[-1])):
        order = np.argsort(-row)
        before = np.cumsum(row[order]) - row[order]
        out[order[before < top_p]] = True
    return keep


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.86, 0.99])
def test_nucleus_keeps_what_sorting_keeps(top_p, scale):
    x = logits(scale, k=97)
    got, log_p = top_p_filter(x, top_p), jax.nn.log_softmax(x)
    kept = np.asarray(got > -1e3)
    np.testing.assert_array_equal(kept, by_sorting(probabilities(x), top_p))
    np.testing.assert_allclose(got[kept], log_p[kept], atol=1e-6)
    assert (np.asarray(got)[~kept] == -1e4).all()


def test_the_code_that_crosses_is_kept():
    for top_p, count in ((0.4, 1), (0.55, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        assert (top_p_filter(one([0.5, 0.3, 0.15, 0.05]), top_p) > -1e3).sum() == count


def test_codes_of_equal_probability_stay_or_go_together():
    kept = top_p_filter(one([0.4, 0.2, 0.2, 0.2]), 0.5)[0, 0] > -1e3
    np.testing.assert_array_equal(kept, [True] * 4)
    kept = top_p_filter(one([0.3, 0.3, 0.2, 0.2]), 0.5)[0, 0] > -1e3
    np.testing.assert_array_equal(kept, [True, True, False, False])


def test_tiny_mass_keeps_the_mode_alone():
    x = logits(0.01)
    got = top_p_filter(x, 1e-6)
    assert ((got > -1e3).sum(-1) == 1).all()
    np.testing.assert_array_equal(got.argmax(-1), x.argmax(-1))


def test_all_of_the_mass_keeps_every_code():
    for x in (logits(), logits(20.0), one([0.5, 0.5 - 1e-9, 1e-9]), one([1.0, 1e-30, 1e-37])):
        np.testing.assert_allclose(top_p_filter(x, 1.0), jax.nn.log_softmax(x), atol=1e-6)


def test_settings_may_be_traced():
    """So that one compiled sampler serves every scale, temperature and top_p."""
    program = jax.jit(
        lambda x, null, s, t, p: top_p_filter(apply_temperature(guide(x, null, s), t), p)
    )
    x, null = logits(), logits(seed=1)
    for settings in ((1.0, 1.0, 0.9), (3.0, 0.7, 0.5)):
        s, t, p = settings
        want = top_p_filter(apply_temperature(guide(x, null, s), t), p)
        np.testing.assert_allclose(
            program(x, null, *map(jnp.float32, settings)), want, rtol=1e-5, atol=1e-5
        )
    assert program._cache_size() == 1


def test_several_prompts_add_their_directions():
    x, y, null = logits(), logits(seed=1), logits(seed=2)
    log = jax.nn.log_softmax
    scales = jnp.array([[2.0, 0.5, 1.0], [1.0, 3.0, 0.0]])
    got = guidance.guide(jnp.stack([x, y]), null, scales)
    for i, (a, b) in enumerate(zip(*np.asarray(scales))):
        want = log(null)[i] + a * (log(x) - log(null))[i] + b * (log(y) - log(null))[i]
        np.testing.assert_allclose(got[i], want, atol=1e-4)
    np.testing.assert_allclose(
        got[2], log(x)[2], atol=1e-5
    )  # weight 0 and scale 1: the first prompt
    mean = blend(jnp.stack([x, y]), jnp.array([[3.0] * 3, [1.0] * 3]))
    np.testing.assert_allclose(mean, 0.75 * log(x) + 0.25 * log(y), atol=1e-5)
    np.testing.assert_array_equal(blend(x[None], scales[:1]), x)


def test_the_ramp_goes_from_one_to_the_scale():
    scales = jnp.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    got = ramp_scale(scales, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(got.sum(0), [1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(got[0] / got[1], 2, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 50, 80])
def test_the_likeliest_codes_are_those_of_a_sort(count):
    x = logits(k=50)
    order = np.argsort(-np.asarray(x), axis=-1)[..., :count]
    keep = np.zeros(x.shape, bool)
    np.put_along_axis(keep, order, True, axis=-1)
    np.testing.assert_array_equal(top_k_filter(x, count) > -1e3, keep)
    np.testing.assert_array_equal(np.asarray(top_k_filter(x, count))[keep], np.asarray(x)[keep])


def test_guidance_acts_at_the_calls_of_its_interval():
    masked = np.array([1.0, 0.7, 0.5, 0.2])
    static_guidance = GuidanceConfig(guidance=3.0, guidance_below=0.6).static_guidance(guided=True)
    assert static_guidance.guides(masked).tolist() == [False, False, True, True]
    assert not GuidanceConfig().static_guidance(guided=False).guides(masked).any()


@pytest.mark.parametrize(
    "fields,sentence",
    [
        (dict(temperature=0.0), "temperature positive"),
        (dict(top_p=0.0), "top_p in"),
        (dict(top_p=1.1), "top_p in"),
        (dict(guidance=float("nan")), "guidance must be a number"),
        (dict(top_k=-1), "top_k must be 0 or more"),
        (dict(guidance_below=2.0), "guidance_below in"),
    ],
)
def test_bad_settings_are_one_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        GuidanceConfig(**fields)
