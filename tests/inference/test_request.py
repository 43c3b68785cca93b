"""What a file says of its pictures makes them again, all or one of them; what is watched ends as
what is drawn.
"""

import base64
import dataclasses
import inspect
import json
import keyword

import numpy as np
import pytest
from PIL import Image

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import save_png
from vqd_jax.data.image_bytes import encode_png
from vqd_jax.inference import inpaint, request
from vqd_jax.inference.inpaint import EditImage
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.inference.request import GenerationRequest
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.samplers.released import PriorRule, ReleasedFast
from vqd_jax.stages import sampling

PLAIN = dict(calls=3, guidance=2.5, temperature=0.8, top_p=0.9, negative_prompt="a tree")


@pytest.fixture(scope="module")
def weights(model):
    return model.digest


@pytest.fixture(scope="module")
def requests(model):
    picture = model("a google style emoji of a red apple", calls=3, output="np")
    half = np.arange(32)[:, None].repeat(32, 1) < 16
    wide, around = (
        np.pad(picture, ((0, 0), (0, 16), (0, 0))),
        np.arange(48)[None].repeat(32, 0) >= 32,
    )
    two = ("a twitter style emoji of a crab", "日本語の犬 \"'")
    return {
        "plain": GenerationRequest(prompts=two, num=2, seed=7, batch=2, settings=PLAIN),
        "option": GenerationRequest(
            prompts=two[:1],
            num=2,
            settings={"sampler": "counts", "calls": 3, "order": "halton", "temperature": 3.0},
        ),
        "masked": GenerationRequest(
            prompts=two[:1],
            num=2,
            seed=2**32 - 1,
            edit=EditImage(picture, half),
            settings={"calls": 3, "temperature": 3.0},
        ),
        "varied": GenerationRequest(
            prompts=two,
            edit=EditImage(picture, np.ones_like(half)),
            strength=0.5,
            settings={"calls": 3},
        ),
        "wider": GenerationRequest(
            prompts=two[:1], edit=EditImage(wide, around), settings={"calls": 3}
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("varied", "option", "masked", "wider")),
    ],
)
def test_a_file_makes_its_picture_again(model, weights, requests, name, tmp_path):
    asked = requests[name]
    images = request.generate(model, asked)
    for picture in (None, len(images) - 1):
        sheet = np.concatenate(images) if picture is None else images[picture]
        save_png(
            tmp_path / "x.png",
            sheet,
            request.metadata(model, asked, weights, picture=picture, stage="diffusion"),
        )
        read, which = request.read_file(model, str(tmp_path / "x.png"), weights)
        assert which == picture and read.image_prompts == asked.image_prompts
        np.testing.assert_array_equal(request.generate(model, read), images)
    assert len(images) == 1 or (images[0] != images[1]).any()


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in ("varied", "option", "masked"))],
)
def test_what_is_watched_ends_as_what_is_drawn(model, requests, name):
    seen = list(request.watch(model, requests[name]))
    assert len(seen) == request.calls(model, requests[name]) == 3 and (seen[0] != seen[-1]).any()
    np.testing.assert_array_equal(seen[-1], request.generate(model, requests[name]))


@pytest.mark.slow  # test_inpaint.py paints several windows
def test_an_image_of_several_windows_is_watched_too(model, requests):
    seen = list(request.watch(model, requests["wider"]))
    np.testing.assert_array_equal(seen[-1], request.generate(model, requests["wider"]))
    for images in seen:
        np.testing.assert_array_equal(images[0, :, :32], requests["wider"].edit.image[:, :32])


@pytest.mark.parametrize(
    "fields,sentence",
    [
        ([], "a request is a JSON object"),
        ({"prompts": "a dog"}, "prompts must be a list of texts, got 'a dog'"),
        ({"prompts": [3]}, "prompts must"),
        ({"prompts": []}, "--prompt is missing"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"prompts": ["x" * 1001]}, "has 1,001 characters"),
        ({"num": 0}, "num must be a whole number in 1..1e\\+06, got 0"),
        ({"num": 2.0}, "num must be a whole number"),
        ({"num": True}, "num must"),
        ({"seed": -1}, "seed must be a whole number in 0"),
        ({"seed": 2**32}, "seed must"),
        ({"seed": "1"}, "seed must be a whole number.*'1'"),
        ({"calls": 101}, r"calls must be in 1\.\.100, got 101"),
        ({"calls": 2.5}, "calls must be a whole number"),
        ({"calls": 10**400}, "calls must be a whole number, got 1000"),
        ({"guidance": 10**400}, "guidance must be a number, got 1000"),
        ({"sampler": "counts", "calls": 65}, r"calls must be in 1\.\.64"),
        ({"negative_prompt": "x" * 1001, "guidance": 2}, "has 1,001 characters"),
        ({"negative_prompt": "x"}, "acts through guidance, .* choose another scale, such as 2"),
        ({"guidance": float("nan")}, "guidance must be a number, got nan"),
        ({"guidance": "2"}, "guidance must be a number, got '2'"),
        ({"temperature": 0}, "temperature positive"),
        ({"temperature": float("inf")}, "temperature must be a number, got inf"),
        ({"ramp": 1}, "ramp must be true or false"),
        ({"sampler": 3}, "sampler must be a text"),
        ({"sampler": "best"}, "must be one of ancestral"),
        ({"negative_prompt": ["x"]}, "negative_prompt must be a text"),
        ({"guidance": 1, "negative_prompt": "y"}, "acts through guidance"),
        (
            {"nonsense": 1},
            "^unknown field 'nonsense'; known are prompts, num, .*top_k, .*rule, weight$",
        ),
        ({"order": "halton"}, "the sampler ancestral has no option 'order'"),
        ({"strength": 0.5}, "are for editing an image"),
        ({"mask": "AAAA"}, "are for editing"),
        ({"init_image": "%%%"}, "init_image must be an image file in base64"),
        ({"init_image": 7}, "init_image must be an image file"),
        ({"init_image": "AAAA"}, "the init_image is not an image that can be read"),
        ({"strength": 0, "init_image": "PNG"}, r"strength must lie"),
        ({"strength": 1.5, "init_image": "PNG"}, r"strength must be a number in 0\.\.1"),
        ({"init_image": "PNG", "mask": "PNG"}, "marks nothing"),
    ],
)
def test_bad_fields_are_one_sentence(model, fields, sentence):
    import base64

    from vqd_jax.data.image_bytes import encode_png

    if isinstance(fields, dict):
        black = (
            "data:image/png;base64,"
            + base64.b64encode(encode_png(np.zeros((40, 40, 3), np.uint8))).decode()
        )
        fields = {"prompts": ["a dog"]} | {k: black if v == "PNG" else v for k, v in fields.items()}
    with pytest.raises(UserError, match=sentence) as caught:
        request.parse(model, fields)
    assert "\n" not in str(caught.value)


def parameters(*functions):
    return {name for function in functions for name in inspect.signature(function).parameters}


NAMES = sorted(
    parameters(
        *(request.parse, request.generate, request.watch, request.metadata, request.check),
        *(inpaint.edit, inpaint.watch, inpaint._paint),
        *(TextToImage, TextToImage.__call__, TextToImage.tokens, TextToImage.watch),
        *(TextToImage._arguments, TextToImage._sample, TextToImage.settings, TextToImage.batches),
        *(build.sampling, sampling.sample, sampling.watch, GenerationRequest, GuidanceConfig),
        *(
            Ancestral,
            Remask,
            Counts,
            ReleasedFast,
            PriorRule,
            AutoregressiveSampler,
            Counts.planned,
        ),
    )
    | {*dir(object), *dir(GenerationRequest), *dir(TextToImage), *keyword.kwlist}
    | {
        *request.FIELDS,
        "",
        " ",
        "a b",
        "num ",
        "ｎum",
        "\n",
        "\0",
        "\ud800",
        "‮",
        "x" * 10_000,
        "model",
        "begin",
    }
)


def test_names_from_outside_never_become_keywords(model, weights, tmp_path):
    """Every parameter of every function on the way of a request, as a field of it and as a setting:
    what is no field is one sentence.
    """
    good = {"prompts": ["a dog"], "calls": 3}
    fields = {"prompts", "num", "seed", "batch", "init_image", "mask", "extend", "strength"}
    sections = [model.config[name] for name in ("sampling", "counts", "remask", "prior_rule")]
    settings = {"negative_prompt", *(name for section in sections for name in section)}
    assert {"t_start", "self", "image", "first", "weights", "prompts"} <= {*NAMES}
    for name in NAMES:
        unknown = name not in fields | settings
        for value in (1, None, "x", [1], {"self": 1}):
            sentence = error_of(lambda: request.parse(model, good | {name: value}))
            assert sentence.startswith(f"unknown field {name!r:.80}; ") == unknown
            assert sentence.isprintable() and len(sentence) < 600
        if name not in settings:
            wanted = GenerationRequest(prompts=("a dog",), settings={name: 1})
            sentence = error_of(lambda: request.check(model, wanted))
            assert sentence.startswith(f"unknown setting {name!r:.80}; ")
        if unknown and name not in ("model", "picture", *request.LOADING):
            text = {request.KEY: json.dumps(good | {name: 1})}
            save_png(tmp_path / "x.png", np.zeros((1, 1, 3), np.uint8), text)
            sentence = error_of(lambda: request.read_file(model, str(tmp_path / "x.png"), weights))
            assert f"cannot be reproduced: unknown field {name!r:.80}; " in sentence


def error_of(function):
    """The sentence of its UserError; empty without one."""
    try:
        function()
    except UserError as error:
        return str(error)
    return ""


def test_every_option_of_every_sampler_is_a_field(model):
    for section in ("counts", "remask", "prior_rule"):
        for name, value in model.config[section].items():
            if name != "counts":  # of which `auto` needs a plan for some orders
                fields = {"prompts": ["a dog"], "calls": 3, "sampler": section, name: value}
                assert request.parse(model, fields).settings[name] == value
    made = {"ancestral": Ancestral, "released_fast": ReleasedFast}
    assert all(parameters(sampler) == {"calls"} for sampler in made.values())


@pytest.mark.slow  # 6 s
def test_a_plan_is_written_as_its_numbers(model, weights, tmp_path):
    """A file does not change its pictures when the workdir gets another plan."""
    planned = dataclasses.replace(model, entropy=lambda: {"random": np.geomspace(9.0, 0.01, 64)})
    asked = GenerationRequest(
        prompts=("a google style emoji of a dog",),
        num=2,
        settings={"sampler": "counts", "calls": 5},
    )
    images = request.generate(planned, asked)
    save_png(tmp_path / "x.png", images[0], request.metadata(planned, asked, weights))
    read, _ = request.read_file(model, str(tmp_path / "x.png"), weights)
    counts = read.settings["counts"]
    assert sum(counts) == 64 and len(counts) == 5 and len({*counts}) > 2
    np.testing.assert_array_equal(request.generate(model, read), images)
    save_png(
        tmp_path / "x.png", images[0], request.metadata(model, asked, weights)
    )  # without a plan
    even, _ = request.read_file(planned, str(tmp_path / "x.png"), weights)
    np.testing.assert_array_equal(request.generate(planned, even), request.generate(model, asked))


def test_files_that_cannot_be_made_again_say_why(model, weights, tmp_path):
    path, good = (
        tmp_path / "x.png",
        {"prompts": ["a dog"], "num": 2, "model": weights, "calls": 3, "picture": 1},
    )
    for text, sentence in (
        (None, "holds no generation request"),
        ("{", "cannot be reproduced: the request is not valid JSON"),
        ('{"num": 1, "num": 2}', "cannot be reproduced: the field 'num' is given twice"),
        (json.dumps(good | {"begin": 1}), "cannot be reproduced: unknown field 'begin'; known are"),
        (json.dumps(good | {"self": 1}), "unknown field 'self'"),
        ("[1]", "cannot be reproduced"),
        (json.dumps(good | {"model": "0"}), "made by another model"),
        (json.dumps(good | {"calls": 0}), "calls must be in"),
        (json.dumps(good | {"picture": 2}), r"picture must be a whole number in 0\.\.1, got 2"),
    ):
        save_png(path, np.zeros((4, 4, 3), np.uint8), text and {request.KEY: text})
        with pytest.raises(UserError, match=f"x.png.*{sentence}"):
            request.read_file(model, str(path), weights)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="holds no generation request"):
        request.read_file(model, str(path), weights)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    with pytest.raises(UserError, match="holds no generation request"):
        request.read_file(model, str(tmp_path / "x.jpg"), weights)
    with pytest.raises(UserError, match="there is no image"):
        request.read_file(model, "gone.png", weights)


@pytest.mark.parametrize(
    "extend,sentence",
    [
        ([1, 2], "extend must be four numbers of pixels, left, top, right, bottom, got [1, 2]"),
        ("8,0,0,0", "extend must be four numbers of pixels"),
        ([8, 0, 0, 1000], "each number of extend must be a whole number in 0.."),
        ([8, 0, 0, True], "each number of extend must be a whole number"),
        ([-8, 0, 0, 0], "each number of extend must be a whole number in 0.."),
    ],
)
def test_an_extension_is_four_numbers(model, extend, sentence):
    picture = np.zeros((model.config.data.image_size,) * 2 + (3,), np.uint8)
    image = base64.b64encode(encode_png(picture)).decode()
    fields = {"prompts": ["a dog"], "init_image": image}
    assert sentence in error_of(lambda: request.parse(model, fields | {"extend": extend}))
    wider = request.parse(model, fields | {"extend": [8, 0, 0, 4]}, most=16).edit
    size = model.config.data.image_size
    assert (
        wider.mask.shape == (size + 4, size + 8) and wider.mask.sum() == wider.mask.size - size**2
    )
    assert request.parse(model, fields | {"extend": [0, 0, 0, 0]}).edit.mask.all()
    assert "give it as init_image" in error_of(
        lambda: request.parse(model, {"prompts": ["a dog"], "extend": [8, 0, 0, 0]})
    )
