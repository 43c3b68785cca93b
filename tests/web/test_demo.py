"""The demo without a browser: which requests are accepted, what is answered, and that its images are
those of `vqd sample`; the command.
"""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.commands import run_in_process
from helpers.demo_server import Work, ask, served
from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.core.shipped import MODEL
from vqd_jax.data.image_bytes import encode_png
from vqd_jax.inference import pipeline
from vqd_jax.inference import request as recipe
from vqd_jax.stages import sampling
from vqd_jax.web.demo import api

CRAB = {"prompts": ["a twitter style emoji of a crab"], "num": 3, "calls": 3, "seed": 5}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny model with many diffusion steps."""
    changes = {"process.T": 1000, "data.source": "emoji", "denoiser.layers": 1}
    return make_workdir(tmp_path_factory.mktemp("runs") / "tiny", changes)


@pytest.fixture(scope="module")
def model(workdir):
    return pipeline.load(workdir)


@pytest.fixture(scope="module")
def weights(model):
    return model.digest


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_events_show_every_call_and_the_files_reproduce_the_images(model, weights, tmp_path):
    asked = api.parse_request(model, CRAB)
    *seen, done = api.draw(model, asked, weights)
    assert (
        [event["call"] for event in seen] == [1, 2, 3]
        and {event["calls"] for event in [*seen, done]} == {3}
        and done["done"]
    )
    assert seen[0]["pictures"] != seen[1]["pictures"] and all(
        len(event["pictures"]) == 3 for event in [*seen, done]
    )
    want = model(CRAB["prompts"] * 3, seed=5, calls=3, output="np")
    for i, url in enumerate(done["pictures"]):
        np.testing.assert_array_equal(pixels(url), want[i])
        (tmp_path / "x.png").write_bytes(base64.b64decode(url.partition(",")[2]))
        again, which = recipe.read_file(model, str(tmp_path / "x.png"), weights)
        np.testing.assert_array_equal(recipe.generate(model, again)[which], want[i])


def test_initial_images_are_resized_and_only_the_mask_is_repainted(model, weights):
    rng = np.random.default_rng(0)
    large, mask = rng.integers(0, 256, (80, 100, 3), np.uint8), np.zeros((80, 100, 3), np.uint8)
    mask[:, :50] = 255
    asked = api.parse_request(
        model,
        CRAB
        | {
            name: base64.b64encode(encode_png(x)).decode()
            for name, x in (("init_image", large), ("mask", mask))
        },
    )
    *_, done = api.draw(model, asked, weights)
    for url in done["pictures"]:
        np.testing.assert_array_equal(pixels(url)[:, 8:], asked.edit.image[:, 8:])
        assert (pixels(url)[:, :8] != asked.edit.image[:, :8]).any()


@pytest.mark.parametrize(
    "fields,sentence",
    [
        ({"num": 17}, "at most 16 images are drawn at once, got 17"),
        ({"prompts": ["a", "b"], "num": 9}, "at most 16.*got 18"),
        ({"prompts": ["a"] * 1000, "num": 1_000_000}, "at most 16.*got 1000000000"),
        ({"prompts": [" AND ".join("abcdefghi")]}, "at most 8 prompts are blended in one, got 9"),
        (
            {"prompts": ["a cat AND a dog :" + "9" * 400]},
            r"the weight of 'a dog' must be a number in -50\.\.50, got inf",
        ),
        ({"guidance": 51}, r"guidance must be a number in -50\.\.50, got 51"),
        ({"temperature": 11}, r"temperature must be a number in 0\.\.10"),
        ({"batch": 2}, "at most 2 images"),
        ({"calls": 1001}, r"^steps must be in 1\.\.1000, got 1001$"),
        ({"calls": "x"}, "^steps must be a whole number, got 'x'$"),
    ],
)
def test_requests_are_bounded(model, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        api.parse_request(model, CRAB | fields)


@pytest.mark.parametrize(
    "prompt",
    ["x" * 1000, "日本語の犬", "حصان", "👩‍🚀", "a\nb\x00c", "‮abc", "<b onload=x>", "%s ${x} '\""],
)
def test_prompts_of_any_length_and_script_are_drawn(model, weights, prompt):
    *_, done = api.draw(model, api.parse_request(model, CRAB | {"prompts": [prompt]}), weights)
    text = json.loads(
        Image.open(io.BytesIO(base64.b64decode(done["pictures"][0].partition(",")[2]))).text[
            recipe.KEY
        ]
    )
    assert text["prompts"] == [prompt]


def test_a_small_file_with_a_large_picture_is_refused(model):
    """Its pixels would take a thousand times as much memory as the request."""
    file = io.BytesIO()
    Image.new("L", (5000, 4000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(
        UserError,
        match="the init_image is not an image that can be read .*at most 16,777,216 are read",
    ):
        api.parse_request(model, CRAB | {"init_image": base64.b64encode(file.getvalue()).decode()})


@pytest.mark.slow  # 8 s
def test_different_requests_do_not_fill_the_memory(model, weights, monkeypatch):
    """Few compiled samplers are kept in memory, and one that was dropped gives the same images."""
    monkeypatch.setattr(api, "MAX_PROGRAMS", 1)
    drawn, kept = [], []
    for calls in (3, 2, 3):
        *_, done = api.draw(model, api.parse_request(model, CRAB | {"calls": calls}), weights)
        drawn.append(done["pictures"])
        kept.append(sampling.compiled_samplers())
    assert kept == [1, 2, 1] and drawn[0] == drawn[2] != drawn[1]


def test_model_info_lists_what_is_accepted(model, workdir, weights):
    about = api.model_info(model, str(workdir), weights)
    assert (about["name"], about["size"], about["calls"], about["model"]) == (
        "tiny",
        16,
        1000,
        weights,
    )
    for name in about["samplers"]:
        api.parse_request(model, CRAB | {"sampler": name})
    api.parse_request(model, {"prompts": about["examples"][:1], **about["sampling"]})


def test_suggestions_are_the_captions_beside_the_model(model, tmp_path, weights, capsys):
    captions = lambda: api.model_info(model, str(tmp_path), weights)["captions"]
    assert captions() == []
    (tmp_path / "captions.txt").write_text("a crab\na \u2028 é\n")
    assert captions() == ["a crab", "a \u2028 é"]
    (tmp_path / "captions.txt").write_bytes(b"\xff\xfe")
    assert captions() == [] and "there are no suggestions: " in capsys.readouterr().out


def test_suggestions_of_models_that_are_no_local_workdir(model, tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captions = lambda workdir: api.model_info(model, workdir, weights)["captions"]
    assert (
        captions("hf://someone/emoji") == captions("gs://bucket/emoji") == captions("x.bin") == []
    )
    assert "a google style emoji of a robot" in captions(MODEL)


def test_the_interface_is_described_as_it_is(model, weights):
    """Every field of a request, its bounds, its example and the fields of events; nothing else is
    taken.
    """
    with served(Work()) as server:
        status, headers, body = ask(server, "GET", "/api/openapi.json")
    said = json.loads(body)
    fields, example = (
        said["components"]["schemas"]["Request"][name] for name in ("properties", "example")
    )
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert {*said["paths"]} == {"/api/models", "/api/draw", "/api/stop/{id}"} and {*example} <= {
        *fields
    }
    text = json.loads(recipe.metadata(model, api.parse_request(model, CRAB), weights)[recipe.KEY])
    more = {"negative_prompt", "init_image", "mask", "extend", "strength"}
    assert {*fields} == {*text} - {"batch"} | more
    assert fields["sampler"]["enum"] == [*api.SAMPLERS]
    words = {"calls": "steps"}
    for name, field in fields.items():
        for bound, outside in (("minimum", -1), ("maximum", 1)):
            if bound in field:
                api.parse_request(
                    model,
                    example
                    | {name: field[bound], "negative_prompt": ""}
                    | ({"num": 1} if name != "num" else {}),
                )
                with pytest.raises(UserError, match=f"{words.get(name, name)}|at most 16 images"):
                    api.parse_request(model, example | {name: field[bound] + outside})
    *seen, done = api.draw(
        model, api.parse_request(model, example | {"num": 3, "calls": 3}), weights
    )
    events = said["components"]["schemas"]["Event"]["properties"]
    assert {*seen[0]} | {*done} | {"waiting", "error"} == {*events}


def test_the_command_explains_bad_addresses(workdir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for argument, message in (
            (f"--port={port}", f"cannot serve at 127.0.0.1:{port}: Address already in use"),
            ("--host=999.1.1.1", "cannot serve at 999.1.1.1"),
        ):
            done = run_in_process("demo", f"--workdir={workdir}", argument, ok=False)
            assert done.returncode != 0 and message in done.stderr
            assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_server_while_it_samples(workdir):
    process = subprocess.Popen(
        [sys.executable, "-m", "vqd_jax", "demo", f"--workdir={workdir}", "--port=0"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    try:
        address = "127.0.0.1", int(re.search(r":(\d+)/", process.stdout.readline())[1])
        connection = http.client.HTTPConnection(*address, timeout=300)
        connection.request(
            "POST",
            "/api/draw",
            json.dumps(CRAB | {"calls": 1000}),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        while '"call": 2' not in (line := answer.readline().decode()):
            assert line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        answered = answer.read().decode()
    finally:
        process.kill()
    told = [line for line in err.splitlines() if "longer than the 8 tokens" not in line]
    assert (process.returncode, out, told) == (0, "\n", [])
    assert '"done"' not in answered
