"""A page with several models: which one draws, and how the command names them."""

import base64
import http.client
import io
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.demo_page import ENVIRONMENT
from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.inference import pipeline
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages import lora_files
from vqd_jax.stages.lora import Adapter
from vqd_jax.web.demo.models import Model, Models

ASKED = {"prompts": ["a crab"], "num": 2, "calls": 2, "seed": 5}


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_workdir(root / "one", {"denoiser.layers": 1})
    make_workdir(root / "two", {"denoiser.layers": 1, "process.T": 20})
    return root / "one", root / "two"


@pytest.fixture(scope="module")
def models(workdirs):
    return Models([Model(str(path), pipeline.load(path)) for path in workdirs])


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_first_is_the_default_and_each_is_described(models):
    first, second = models.info()["models"]
    assert [first["name"], second["name"]] == ["one", "two"]
    assert (first["calls"], second["calls"]) == (10, 20) and first["model"] != second["model"]
    assert models.parse(ASKED)[0].weights == first["model"]


@pytest.mark.parametrize("place", [0, 1])
def test_the_model_that_is_named_draws(models, place):
    about = models.info()["models"][place]
    *_, done = models.draw(models.parse(ASKED | {"model": about["model"]}))
    chosen = models.by_weights[about["model"]].model
    want = chosen(ASKED["prompts"], num=2, calls=2, seed=5, output="np")
    for url, image in zip(done["pictures"], want, strict=True):
        np.testing.assert_array_equal(pixels(url), image)
    stored = Image.open(io.BytesIO(base64.b64decode(done["pictures"][0].partition(",")[2])))
    assert json.loads(stored.text["vqd_jax"])["model"] == about["model"]


def test_limits_are_those_of_the_model_that_is_named(models):
    one, two = (about["model"] for about in models.info()["models"])
    assert models.parse(ASKED | {"model": two, "calls": 20})[1].settings["calls"] == 20
    with pytest.raises(UserError, match=r"^steps must be in 1\.\.10, got 20$"):
        models.parse(ASKED | {"model": one, "calls": 20})


@pytest.mark.parametrize("model", ["", "x" * 99, None, 1, [], {"a": 1}])
def test_an_unknown_model_is_refused(models, model):
    with pytest.raises(UserError, match="^there is no model .* on this page: GET api/models lists"):
        models.parse(ASKED | {"model": model})


def test_a_model_that_is_given_twice_is_offered_once(models, workdirs):
    twice = Models([models.default, Model(f"{workdirs[0]}/.", models.default.model)])
    assert [about["name"] for about in twice.info()["models"]] == ["one"]


@pytest.mark.parametrize(
    "adapter,name",
    [
        ("", "one"),
        ("runs/flags/adapter", "one + flags"),
        ("runs/flags/adapter/", "one + flags"),
        ("adapter", "one + adapter"),
        ("flags", "one + flags"),
        ("hf://owner/flags", "one + flags"),
    ],
)
def test_names(models, workdirs, adapter, name):
    assert Model(str(workdirs[0]), models.default.model, adapter).name == name


def test_the_command_serves_each_adapter_and_each_workdir(workdirs, models):
    one, two = workdirs
    folder, adapter = Workdir(one.parent / "flags").adapter, Adapter(rank=2)
    denoiser = models.default.model.weights["denoiser"]
    matrices = jax.tree.map(lambda x: x + 0.5, adapter.init(jax.random.key(0), denoiser))
    lora_files.write(folder, adapter, {"denoiser": denoiser, "adapter": matrices})
    command = ["demo", f"--workdir={one}", f"--workdir={two}", f"--adapter={folder}", "--port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vqd_jax", *command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        address, ends = re.search(r"//(\S+)/  \((.*)\)", process.stdout.readline()).groups()
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/api/models")
        names = [m["name"] for m in json.loads(connection.getresponse().read())["models"]]
        told = [process.stdout.readline().partition(",")[0] for _ in range(3)]
    finally:
        process.kill()
    assert ends == "Ctrl-C ends it" and names == told == ["one + flags", "one", "two"]
