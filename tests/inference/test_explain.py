"""An explanation is of the very picture that sampling draws; what it says of a call is what the
network gives there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers.commands import run_in_process
from helpers.workdirs import MODELS, make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.inference import explain, explain_figure, pipeline, request

PROMPT = "a google style emoji of a red apple"


@pytest.mark.parametrize(
    "prompt,settings",
    [
        pytest.param(
            PROMPT, {"calls": 4, "guidance": 3.0, "temperature": 0.9}, marks=pytest.mark.slow
        ),
        pytest.param(
            PROMPT,
            {"sampler": "counts", "calls": 3, "order": "confidence"},
            marks=pytest.mark.slow,
        ),
        pytest.param(  # 12 s
            "a crab AND a dog :0.5",
            {"calls": 2, "negative_prompt": "a tree"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            PROMPT, {"sampler": "remask", "calls": 3, "guidance": 1.0}, marks=pytest.mark.slow
        ),
    ],
    ids=["ancestral", "counts", "blend", "remask"],
)
def test_it_is_the_picture_of_sample_bit_for_bit(shipped, prompt, settings):
    found = explain.explain(shipped, prompt, seed=5, **settings)
    drawn = request.generate(
        shipped,
        request.GenerationRequest(prompts=(prompt,), num=1, seed=5, batch=16, settings=settings),
    )
    np.testing.assert_array_equal(found.images[-1], drawn[0])
    np.testing.assert_array_equal(shipped.decode_partial(found.states), found.images)
    calls = settings["calls"]
    assert (
        found.states.shape == (calls + 1, 64)
        and found.confidence.shape == (calls, 64)
        and found.times[0] == 100
    )
    assert (found.states[0] == found.k).sum() >= 45 and (found.states[-1] < found.k).all()
    for words in found.words:
        assert all((word.attention >= 0).all() for word in words)
        np.testing.assert_allclose(sum(word.attention for word in words), 1, rtol=1e-5)
    texts = [[word.text for word in words] for words in found.words]
    assert texts == [
        [*part.split(), "(start)", "(end)"]
        for part in (["a crab", "a dog"] if "AND" in prompt else [PROMPT])
    ]


@pytest.mark.slow  # 10 s
def test_it_says_what_the_network_gives_in_each_call(shipped):
    found = explain.explain(shipped, PROMPT, seed=5, calls=4, guidance=3.0, temperature=0.8)
    stage, ids = shipped.stage, jnp.asarray(shipped.tokenizer([PROMPT]))
    maps = []
    for z, t, confidence in zip(found.states, found.times, found.confidence):
        z, t = jnp.asarray(z)[None], jnp.full(1, t)
        text, null = (
            np.asarray(
                jax.nn.log_softmax(stage.predict(shipped.weights, z, t, ids, jnp.array([drop])))[0],
                np.float64,
            )
            for drop in (False, True)
        )
        p = np.exp((null + 3 * (text - null)) / 0.8)
        np.testing.assert_allclose(confidence, (p / p.sum(-1, keepdims=True)).max(-1), rtol=1e-3)
        maps.append(stage.attention(shipped.weights, z, t, ids)[0])
    assert shipped.tokenizer.words(PROMPT)[-1][0] == "apple"
    places = shipped.tokenizer.words(PROMPT)[-1][1]
    apple = next(word for word in found.words[0] if word.text == "apple")
    np.testing.assert_allclose(apple.attention, np.mean(maps, axis=0)[:, places].sum(-1), rtol=1e-4)


def test_what_became_of_each_token():
    before, after = np.array([9, 9, 3, 3, 3]), np.array([9, 3, 3, 4, 9])
    assert [explain_figure.CHANGES[i][0] for i in explain_figure.changes(before, after, 9)] == [
        "unchanged",
        "drawn",
        "unchanged",
        "replaced by another",
        "masked again",
    ]


@pytest.mark.parametrize(
    "kind,asked",
    [
        pytest.param("text", "apples $x$ 猫", marks=pytest.mark.slow),
        pytest.param("class", "2", marks=pytest.mark.slow),
        pytest.param("none", "", marks=pytest.mark.slow),
    ],
)
def test_models_of_every_condition_are_explained_and_drawn(tmp_path, kind, asked):
    model = pipeline.load(make_workdir(tmp_path / "model", MODELS[kind]))
    found = explain.explain(model, asked, seed=1)
    np.testing.assert_array_equal(found.images[-1], model(asked, seed=1, output="np"))
    assert len(found.words) == (kind == "text")
    pytest.importorskip("matplotlib")
    explain_figure.draw(found, asked, tmp_path / "new" / "out.png")
    with Image.open(tmp_path / "new" / "out.png") as picture:
        (width, height), pixels = picture.size, np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert width == 1680 and (height > 1100) == (kind == "text")
    counts = [
        (pixels == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum()
        for _, color in explain_figure.CHANGES[:2]
    ]
    assert min(counts) > 1000  # cells as before, and drawn


def test_one_prompt_and_a_diffusion():
    with pytest.raises(UserError, match="one image is explained at a time"):
        explain.single_prompt(["a", "b"])
    assert explain.single_prompt(["a"]) == "a"


def test_an_autoregressive_model_is_not_explained(tmp_path):
    model = pipeline.load(make_workdir(tmp_path, MODELS["text"], stages=("autoregressive",)))
    with pytest.raises(UserError, match="has no diffusion times"):
        explain.explain(model, "apples")


@pytest.mark.slow  # 6 s
def test_the_command_on_the_shipped_model(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    arguments = ["--workdir=pretrained/emoji", f"--prompt={PROMPT}", "--calls=3"]
    done = run_in_process("explain", *arguments, "--sampler=counts", f"--out={out}")
    assert done.stdout.splitlines()[1:] == [f"3 steps: {out}"]
    assert Image.open(out).size[0] == 1680 and "Warning" not in done.stderr
