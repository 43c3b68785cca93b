"""The shipped model as a library: batches on any number of devices, blended and negative prompts,
watching, bad settings.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.inference import model as inference_model
from vqd_jax.inference import pipeline
from vqd_jax.inference.prompts import split_prompt
from vqd_jax.runtime.devices import building_for
from vqd_jax.samplers.base import Constraint
from vqd_jax.stages import sampling

PROMPTS = [
    f"{style} style emoji of {what}"
    for what in ("a dog", "a tree", "a red apple")
    for style in ("a google", "a twitter", "an openmoji")
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"sampler": "counts", "order": "confidence"}, marks=pytest.mark.slow),
    ],
    ids=["ancestral", "counts"],
)
def test_devices_share_the_batches_and_change_nothing(model, settings, monkeypatch):
    """9 prompts, 2 at a time: on 4 devices, padded, and one after the other on one."""
    assert jax.local_device_count() == 4
    settings = {"calls": 4, "seed": 5} | settings
    placed, replicate = [], inference_model.replicate
    keep = lambda tree, devices: placed.append(devices) or replicate(tree, devices)
    monkeypatch.setattr(inference_model, "replicate", keep)
    model = dataclasses.replace(model)  # whose weights are nowhere else yet
    shared = list(model.batches(PROMPTS, 2, **settings))
    assert placed == [tuple(jax.local_devices())]  # not with every batch
    assert [len(images) for images in shared] == [8, 1]
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    alone = list(model.batches(PROMPTS, 2, **settings))
    assert [len(images) for images in alone] == [2, 2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(shared), np.concatenate(alone))
    tokens = model.tokens(PROMPTS[2:4], first=2, **settings)
    np.testing.assert_array_equal(model.decode(tokens), alone[1])


@pytest.mark.parametrize("count", [1, 5])
def test_accelerators_draw_a_batch_ahead(model, monkeypatch, count):
    prompts = [f"a google style emoji of a {x}" for x in ("dog", "cat", "robot", "apple", "sun")]
    want = np.concatenate([*model.batches(prompts[:count], 2, seed=3, calls=3)])
    started, sample = [], sampling.sample
    record = lambda *a, **kw: started.append(kw["first"]) or sample(*a, **kw)
    monkeypatch.setattr(sampling, "sample", record)
    monkeypatch.setattr(inference_model, "local_devices", lambda rows: (jax.local_devices()[0],))
    monkeypatch.setattr(inference_model, "platform", lambda: "gpu")
    for i, images in enumerate(model.batches(prompts[:count], 2, seed=3, calls=3)):
        assert started == [*range(0, count, 2)][: i + 2]
        np.testing.assert_array_equal(images, want[2 * i : 2 * i + 2])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_noise_of_an_image_does_not_know_the_batch(batch):
    bits = lambda *args: jax.random.key_data(sampling.image_keys(*args))
    every = bits(3, 0, 8)
    parts = [bits(3, first, min(batch, 8 - first)) for first in range(0, 8, batch)]
    np.testing.assert_array_equal(np.concatenate(parts), every)
    assert len(np.unique(every, axis=0)) == 8 and (bits(4, 0, 8) != every).any()


@pytest.mark.slow  # three programs; the test above has the promise without a trace
def test_traces_and_states_are_shared_too(model):
    one = model.tokens(PROMPTS[:4], calls=3, trace=True)
    two = model.tokens(PROMPTS[:4], calls=3, trace=True, devices=2)
    assert one[1].shape == two[1].shape == (3, 4, 64)
    half = model.tokens(PROMPTS[2:4], first=2, calls=3, trace=True)
    np.testing.assert_array_equal(two[0][2:], half[0])
    np.testing.assert_array_equal(two[1][:, 2:], half[1])


def test_watching_sees_what_the_scan_does(model):
    asked = dict(calls=5, seed=1, guidance=2.0, guidance_below=0.6)
    _, states = model.tokens(PROMPTS[:2], **asked, trace=True)
    compiled = sampling.compiled_samplers()
    seen = list(model.watch(PROMPTS[:2], **asked))
    assert len(seen) == 5
    np.testing.assert_array_equal(seen[-1][0], model.tokens(PROMPTS[:2], **asked))  # to the bit
    assert sampling.compiled_samplers() == compiled + 1  # one program does both
    agree = np.mean(
        [(s == t).mean() for (s, _), t in zip(seen, states)]
    )  # two programs: the last bits may differ
    assert agree > 0.9 and (seen[-1][0] < 512).all()
    first, picture = seen[0]
    grey = (picture == 190).all(-1).reshape(2, 8, 4, 8, 4).all((2, 4)).reshape(2, 64)
    np.testing.assert_array_equal(grey, first == 512)
    np.testing.assert_array_equal(seen[-1][1], model.decode(seen[-1][0]))


@pytest.mark.parametrize(
    "name,strength",
    [
        pytest.param("counts", 0.5, marks=pytest.mark.slow),
        pytest.param("ancestral", 1.0, marks=pytest.mark.slow),
        pytest.param("remask", 0.5, marks=pytest.mark.slow),
    ],
)
def test_what_is_watched_of_a_change_is_what_comes_out(model, name, strength):
    """From the tokens of a picture, with some of them kept, at another place in the noise."""
    image = model.tokens(PROMPTS[:3], calls=3)
    known = Constraint(np.random.default_rng(0).random(image.shape) < 0.3, image)
    asked = dict(
        constraint=known, image=image, strength=strength, calls=4, seed=2, first=5, sampler=name
    )
    seen = [tokens for tokens, _ in model.watch(PROMPTS[3:6], **asked)]
    assert len(seen) == 4 and len({s.tobytes() for s in seen}) > 1
    np.testing.assert_array_equal(seen[-1], model.tokens(PROMPTS[3:6], **asked))
    assert all((s[known.mask] == image[known.mask]).all() for s in seen)


@pytest.mark.slow  # 10 s
def test_a_blend_has_weights(model):
    assert split_prompt("a cat AND a dog :0.5") == [("a cat", 1.0), ("a dog", 0.5)]
    assert split_prompt("a SANDcastle: 3 towers") == [("a SANDcastle: 3 towers", 1.0)]
    both, apple = "a google style emoji of a dog", "a google style emoji of a red apple"
    plain = model.tokens([both] * 4, calls=6, guidance=1.5)
    np.testing.assert_array_equal(
        model.tokens([f"{both} AND {apple} :0"] * 4, calls=6, guidance=1.5), plain
    )
    assert (model.tokens([f"{both} AND {apple}"] * 4, calls=6, guidance=1.5) != plain).any()
    with pytest.raises(UserError, match="positive sum"):
        model.tokens([f"{both} AND {apple} :-2"])


@pytest.mark.slow  # 7 s
def test_a_negative_prompt_leads_away(model):
    prompt = ["a google style emoji of a dog"] * 4
    plain = model.tokens(prompt, calls=6, guidance=3.0)
    assert (model.tokens(prompt, calls=6, guidance=3.0, negative_prompt="a tree") != plain).any()
    same = model.tokens(
        prompt, calls=6, guidance=3.0, negative_prompt=prompt[0]
    )  # away from itself: guidance of 1
    assert (same == model.tokens(prompt, calls=6, guidance=1.0)).mean() > 0.9
    empty = model.tokens(prompt, calls=6, guidance=3.0, null="empty")
    assert (empty != plain).any()
    np.testing.assert_array_equal(
        empty, model.tokens(prompt, calls=6, guidance=3.0, null="empty", negative_prompt=" ")
    )
    with pytest.raises(UserError, match="guidance of 1 is none"):
        model.tokens(prompt, negative_prompt="a tree", guidance=1.0)


@pytest.mark.parametrize(
    "settings,sentence",
    [
        ({"calls": 101}, r"calls must be in 1..100, got 101"),
        ({"calls": 0}, "calls must be in"),
        ({"sampler": "fast"}, "sampling.sampler must be one of ancestral, .*got 'fast'"),
        ({"order": "halton"}, "the sampler ancestral has no option 'order'"),
        ({"sampler": "counts", "order": "spiral"}, "order of counts must be one of"),
        (
            {"sampler": "counts", "polish": "many"},
            "the option polish of counts must be like 0, got 'many'",
        ),
        (
            {"sampler": "counts", "counts": ["a"] * 25},
            "the option counts of counts must be like 'auto', got .'a', 'a'",
        ),
        ({"sampler": "counts", "order": [[0]]}, "the option order of counts must be like"),
        ({"sampler": "counts", "noise": float("nan")}, "noise of counts must be like 4.5, got nan"),
        ({"sampler": "counts", "noise": 10**400}, "noise of counts must be like 4.5, got 1000"),
        ({"sampler": "counts", "noise": True}, "got True"),
        ({"negative_prompt": "x" * 1001, "guidance": 2.0}, "a prompt has 1,001 characters"),
        ({"sampler": "counts", "calls": 65}, "calls must be in 1..64"),
        ({"sampler": "remask", "eta": 2.0}, r"eta in \[0, 1\], got 2"),
        ({"temperature": 0.0}, "temperature positive"),
        ({"top_p": 1.5}, r"top_p in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"strength": 0.0}, r"strength must lie in \(0, 1\]"),
    ],
)
def test_bad_settings_are_one_sentence(model, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        model.tokens(["a dog"], **settings)


def test_kernels_are_kept_in_the_compute_dtype_and_the_digest_is_that_of_the_stored_ones(
    monkeypatch,
):
    """As on an accelerator, where the products are bfloat16."""
    stored = pipeline.load(ROOT / "pretrained" / "emoji")
    monkeypatch.setattr(pipeline, "platform", lambda: "gpu")
    with building_for("tpu"):  # whose plain attention runs anywhere
        model = pipeline.load(ROOT / "pretrained" / "emoji")
    network = model.weights["denoiser"]
    assert model.stage.denoiser.dtype == jnp.bfloat16
    assert (
        network["block0"]["mlp_in"]["kernel"].dtype == network["head"]["kernel"].dtype == "bfloat16"
    )
    others = [network["block0"]["mlp_in"]["bias"], network["tokens"]["embedding"]]
    assert {x.dtype for x in others} == {jnp.dtype("float32")}
    assert model.digest == stored.digest
    # the same tokens as with kernels that every call converts
    whole = dataclasses.replace(model, weights=stored.weights)
    asked = dict(prompts=["a google style emoji of a robot"] * 2, calls=4, guidance=2.0)
    np.testing.assert_array_equal(model.tokens(**asked), whole.tokens(**asked))
