"""Images in a folder: a stopped run ends with the bytes of one that was not stopped, and never mixes
models or settings.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.eval import generate
from vqd_jax.inference import pipeline

PROMPTS = ["a red apple", "a dog", "日本語", "a dog", "two apples", "a tree", "a house"]
HOW = dict(seed=3, batch=2, settings={"calls": 2, "temperature": 1.0}, protocol="clean")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """On one device a batch has the 2 images of HOW; four devices would make all of them at once."""
    one = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: one)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pipeline.load(make_workdir(tmp_path_factory.mktemp("model"), {"denoiser.layers": 1}))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "pictures"
    return folder, *generate.generate(model, folder, PROMPTS, **HOW)


def contents(folder, but=(".lock",)):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def pictures(folder):
    return {
        name: content for name, content in contents(folder).items() if name != generate.DESCRIPTION
    }


def test_files_hold_the_images_of_the_model(model, whole):
    folder, made, rate = whole
    want = np.concatenate([*model.batches(PROMPTS, 2, seed=3, calls=2, temperature=1.0)])
    np.testing.assert_array_equal(np.stack([made[i] for i in range(len(made))]), want)
    assert len(np.unique(want, axis=0)) == 7 and rate > 0  # also of equal prompts
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000004.png")), want[4])


def test_other_programs_can_read_folder_and_captions(whole):
    source = captioned_folder(path=str(whole[0]), held_out_items=0.0)
    assert [record.captions for record in source.records] == [(prompt,) for prompt in PROMPTS]


@pytest.mark.parametrize("picture", [0, 1, 3, 6])
def test_a_stopped_run_continues_with_the_same_bytes(model, whole, tmp_path, monkeypatch, picture):
    """Interrupted while it writes that image."""
    written, png = [], generate.encode_png

    def struck(image):
        if len(written) == picture:
            raise KeyboardInterrupt
        written.append(image)
        return png(image)

    monkeypatch.setattr(generate, "encode_png", struck)
    monkeypatch.setattr(generate, "cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(model, tmp_path, PROMPTS, **HOW)
    before = contents(tmp_path)
    assert (
        sum(name.endswith(".png") for name in before) == picture and generate.CAPTIONS not in before
    )
    again = []
    monkeypatch.setattr(generate, "encode_png", lambda image: again.append(image) or png(image))
    generate.generate(model, tmp_path, PROMPTS, **HOW)
    assert len(again) == 7 - picture // 2 * 2  # whole batches are not made again
    assert pictures(tmp_path) == pictures(whole[0])
    done = json.loads((tmp_path / generate.DESCRIPTION).read_text())
    assert (
        done["wanted"] == json.loads((whole[0] / generate.DESCRIPTION).read_text())["wanted"]
        and done["seconds"] > 0
    )


def test_existing_images_are_not_generated_again(model, whole, tmp_path, monkeypatch):
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    before = contents(copy)
    monkeypatch.setattr(generate, "encode_png", None)
    made, rate = generate.generate(model, copy, PROMPTS, **HOW)
    assert contents(copy) == before and rate == whole[2] and len(made) == 7


@pytest.mark.parametrize(
    "change,sentence",
    [
        (
            dict(seed=4),
            r"have another seed \(3 there, 4 requested\): name another folder with --pictures, or "
            r"delete this one",
        ),
        (
            dict(settings={"calls": 3, "temperature": 1.0}),
            r"have another calls \(2 there, 3 requested\)",
        ),
        (dict(batch=3), r"have another batch \(2 there, 3 requested\)"),
        (dict(protocol="adm"), r"another protocol \(clean there, adm requested\)"),
        (dict(prompts=["a cat", *PROMPTS[1:]]), "have another prompts: name another folder"),
        (dict(weights=2.0), "have another model: name another folder"),
    ],
)
def test_images_of_another_run_are_an_error(model, whole, change, sentence):
    before, how = contents(whole[0]), {k: v for k, v in change.items() if k in HOW}
    if scale := change.get("weights"):
        model = dataclasses.replace(model, weights=jax.tree.map(lambda x: x * scale, model.weights))
    with pytest.raises(UserError, match=sentence):
        generate.generate(model, whole[0], change.get("prompts", PROMPTS), **HOW | how)
    assert contents(whole[0]) == before


def test_other_folders_are_left_alone(model, whole, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match="holds images that vqd did not generate: name another folder"
    ):
        generate.generate(model, tmp_path, PROMPTS, **HOW)
    assert contents(tmp_path) == before
    damaged = shutil.copytree(whole[0], tmp_path / "copy")
    for text in ("", "{}", '{"wanted": {"seed": 3}, "made": 0, "seconds": 0}', "[]"):
        (damaged / generate.DESCRIPTION).write_text(text)
        with pytest.raises(
            UserError, match=r"pictures.json is damaged \(\w+\): delete it with its images"
        ):
            generate.generate(model, damaged, PROMPTS, **HOW)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write images into .*file"):
        generate.generate(model, tmp_path / "file", PROMPTS, **HOW)
