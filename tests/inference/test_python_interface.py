"""From Python: one prompt or several, PIL images or arrays, edits, callbacks, and what a model may be
loaded from.
"""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.commands import run_in_process
from helpers.workdirs import MODELS, make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.inference import inpaint, pipeline, request
from vqd_jax.inference.loading import HUB_FILE

PROMPT = "a google style emoji of a red apple"
CALLS = dict(calls=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("python") / "model", MODELS["text"], plan=True)


@pytest.fixture(scope="module")
def model(workdir):
    return pipeline.load(workdir)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_a_prompt_is_one_image_and_not_one_for_each_letter(model):
    one = model(PROMPT, **CALLS)
    assert isinstance(one, Image.Image) and one.size == (16, 16)
    array = model(PROMPT, output="np", **CALLS)
    np.testing.assert_array_equal(one, array)
    np.testing.assert_array_equal(array, model.decode(model.tokens([PROMPT], **CALLS))[0])


def test_several_are_a_list_all_images_of_the_first_prompt_first(model):
    prompts = [PROMPT, "a twitter style emoji of a dog"]
    images = model(prompts, num=2, seed=3, **CALLS)
    assert [type(image) for image in images] == [Image.Image] * 4
    asked = request.GenerationRequest(prompts=tuple(prompts), num=2, seed=3, settings=CALLS)
    np.testing.assert_array_equal(pixels(images), request.generate(model, asked))
    assert len(model(PROMPT, num=2, **CALLS)) == 2 and len(model([PROMPT], **CALLS)) == 1


def test_a_callback_sees_every_call(model):
    seen = []
    image = model(PROMPT, calls=3, callback=lambda call, image: seen.append((call, image)))
    assert [call for call, _ in seen] == [1, 2, 3]
    assert np.asarray(seen[0][1]).shape == (16, 16, 3)
    np.testing.assert_array_equal(seen[-1][1], image)
    np.testing.assert_array_equal(image, model(PROMPT, calls=3))


def test_edits_are_those_of_the_command(model, image, tmp_path):
    half = np.zeros((16, 16), bool)
    half[8:] = True
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(half).save(tmp_path / "mask.png")
    marked = inpaint.make_edit_image(image, half, None, model.square)
    want = inpaint.edit(model, marked, [PROMPT], **CALLS)[0]
    for given, mask in (
        (image, half),
        (Image.fromarray(image), Image.fromarray(half)),
        (tmp_path / "image.png", str(tmp_path / "mask.png")),
    ):
        made = model.inpaint(PROMPT, given, mask, output="np", **CALLS)
        np.testing.assert_array_equal(made, want)
    np.testing.assert_array_equal(made[:8], image[:8])
    everything = inpaint.make_edit_image(image, None, None, model.square)
    want = inpaint.edit(model, everything, [PROMPT] * 2, strength=0.6, seed=5, **CALLS)
    seen = []
    varied = model.vary(
        PROMPT, image, num=2, seed=5, callback=lambda *call: seen.append(call), **CALLS
    )
    np.testing.assert_array_equal(pixels(varied), want)
    assert [call for call, _ in seen] == [1, 2]
    larger = model.extend(PROMPT, image, right=8, bottom=4, **CALLS)
    assert larger.size == (24, 20)
    np.testing.assert_array_equal(np.asarray(larger)[:16, :16], image)


@pytest.mark.parametrize(
    "wrong,sentence",
    [
        (dict(num_inference_steps=3), "'num_inference_steps'; did you mean 'calls'?"),
        (dict(guidance_scale=3.0), "'guidance_scale'; did you mean 'guidance'?"),
        (dict(temprature=0.5), "'temprature'; did you mean 'temperature'?"),
        (dict(xyz=1), "unknown setting 'xyz'; known are negative_prompt, "),
        (dict(output="torch"), 'output must be "pil" or "np", got \'torch\''),
        (dict(num=0), "must be at least 1, got 0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_name_is_told_the_right_one(model, wrong, sentence):
    with pytest.raises(UserError) as error:
        model(PROMPT, **wrong)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "image,sentence",
    [
        (np.zeros((16, 16, 3), np.float32), "must be uint8 pixels (H, W, 3), got float32"),
        ("gone.png", "there is no image gone.png"),
    ],
    ids=["float", "gone"],
)
def test_what_is_no_image_is_one_sentence(model, image, sentence):
    with pytest.raises(UserError) as error:
        model.vary(PROMPT, image)
    assert sentence in str(error.value)


def test_it_says_in_a_line_what_it_is(model):
    assert repr(model).startswith("TextToImage(16 x 16 pixels; vqvae step ")
    assert "\n" not in repr(model)


def test_an_exported_file_is_loaded_as_the_workdir_it_was(model, workdir, tmp_path, monkeypatch):
    """Also from a repository of the hub, which is stood in for by its cache."""
    file = tmp_path / "model.safetensors"
    run_in_process("export", f"--workdir={workdir}", f"--out={file}")
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(file, repository / HUB_FILE)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(repository)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for place in (file, str(repository), "hf://someone/emoji"):
        loaded = pipeline.load(place)
        assert loaded.digest == model.digest
        np.testing.assert_array_equal(loaded(PROMPT, **CALLS), model(PROMPT, **CALLS))
        assert {*loaded.entropy()} == {*model.entropy()} != set()
    assert asked == [("someone/emoji", [HUB_FILE])]
    for wrong in (dict(checkpoint="best"), dict(stage="autoregressive")):
        with pytest.raises(UserError, match="only a workdir|has no stage autoregressive"):
            pipeline.load(file, **wrong)


def test_the_shipped_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pipeline.load("pretrained/emoji64").checkpoints
    for gone in ("pretrained/gone", str(tmp_path / "pretrained" / "emoji"), "gone.safetensors"):
        with pytest.raises(UserError, match="there is no workdir"):
            pipeline.load(gone)
    shutil.copytree(ROOT / "pretrained/emoji/vqvae", tmp_path / "pretrained/emoji/vqvae")
    assert pipeline.load("pretrained/emoji").stage is None  # that of the folder comes first
