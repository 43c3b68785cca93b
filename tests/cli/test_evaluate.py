"""The command: a model and two folders get one JSON, a page and plots; a killed run goes on; bad
input is one sentence.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from helpers import ROOT
from helpers.clip_files import MERGES, VOCABULARY, write_folder
from helpers.commands import run_in_process
from helpers.workdirs import make_workdir
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.eval import evaluator
from vqd_jax.eval.frechet import frechet_distance
from vqd_jax.eval.scores import clip_score
from vqd_jax.models.clip import ClipCaption, ClipImage
from vqd_jax.models.inception import SIZE, InceptionV3
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.weights import clip_towers, inception
from vqd_jax.models.weights.rules import invert


def save(folder, count, size=16, first=0, captions=False):
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(folder / f"{i:02d}.png")
        if captions:
            (folder / f"{i:02d}.txt").write_text(f"picture {i}\nnumber {i}\n")
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A small random model whose config names the protocol as old ones did."""
    pictures = save(tmp_path_factory.mktemp("data") / "pictures", 14, captions=True)
    data = {
        "data.source": "folder",
        "folder.path": str(pictures),
        "folder.held_out_items": 0.3,
        "evaluation.name": "cells",
        "evaluation.images": 9,
        "evaluation.bound_images": 4,
        "evaluation.draws": 1,
        "evaluation.subsets": 2,
    }
    return make_workdir(tmp_path_factory.mktemp("model"), data)


def main(*arguments, ok=True):
    return run_in_process("evaluate", *arguments, ok=ok)


def command(*arguments):
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vqd_jax", "evaluate", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def untimed(text):
    return re.sub(r'"images_per_second": [\d.e-]+', "", text)


@pytest.mark.slow  # 45 s; test_generate resumes in process
def test_a_killed_run_goes_on_with_the_same_bits(workdir, tmp_path):
    """SIGKILL as soon as the second batch of five is there, on one device; the rest is generated on
    four.
    """
    arguments = [f"--workdir={workdir}", f"--cache={tmp_path / 'cache'}", "--batch=2"]
    killed = command(*arguments, f"--out={tmp_path / 'killed' / 'r.json'}")
    pictures, deadline = tmp_path / "killed" / "r" / "seen_cells", time.monotonic() + 900
    while not (pictures / "000003.png").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "r.json").exists()
    before = {path: path.stat().st_mtime_ns for path in pictures.glob("*.png")}
    for run in ("whole", "killed"):
        printed = main(*arguments, f"--out={tmp_path / run / 'r.json'}").stdout
    assert (
        sum(path.stat().st_mtime_ns != changed for path, changed in before.items()) < 2
    )  # of a batch that was not whole
    made = [
        sorted(
            (path.relative_to(tmp_path / run), path.read_bytes())
            for path in (tmp_path / run).rglob("*.png")
        )
        for run in ("whole", "killed")
    ]
    assert made[0] == made[1] and len(made[0]) == 9 + 2
    texts = [(tmp_path / run / "r.json").read_text() for run in ("whole", "killed")]
    assert untimed(texts[0]) == untimed(texts[1])
    result = json.loads(texts[0])
    assert (
        result["protocol"]["name"] == "emoji"
        and result["protocol"]["images"] == 9
        and result["protocol"]["subsets"] == 2
    )
    assert (
        result["provenance"]["steps"] == {"vqvae": 7, "diffusion": 9}
        and result["config"]["evaluation"]["name"] == "emoji"
    )
    assert (
        len(result["provenance"]["weights"]) == 64
        and result["seen_cells"]["images"] == 9
        and "held_out_cells" not in result
    )
    assert result["gallery"]["images"] == 14 and result["seen_cells"]["reference"] == {
        "images": 9,
        "distinct": 9,
        "held": 9,
    }
    assert "best and worst in" in printed and "retrieval@1" in printed
    for name in ("r.png", "r-plots.png"):
        assert Image.open(tmp_path / "whole" / name).size[0] > 300


@pytest.mark.slow  # a minute
def test_the_protocol_emoji64_on_any_captioned_set(workdir, tmp_path):
    """Parts without records are left out, and a second run draws nothing and says the same."""
    arguments = [f"--workdir={workdir}", f"--cache={tmp_path / 'cache'}", "--images=7"]
    arguments += ["--protocol=emoji64", "--batch=4", f"--out={tmp_path / 'r.json'}"]
    printed = main(*arguments).stdout
    first = (tmp_path / "r.json").read_text()
    assert "masked tokens, train" in printed and "free_colours (7)" in printed
    result = json.loads(first)
    assert result["repair"] == {}  # fewer than four held-out images in the half
    assert not {"colours", "two_things", "synonyms", "bound"} & result.keys()
    assert result["free_colours"]["images"] == result["seen_cells"]["images"] == 7
    assert set(result["masked_bits"]) >= {"train"}
    assert result["protocol"]["half"] == "test" and "Wilson" in result["intervals"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.*")}
    main(*arguments)
    assert untimed((tmp_path / "r.json").read_text()) == untimed(first)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.*")}
    assert {**after, **before} == after and len(before) > 14


@pytest.mark.slow  # 3 s
def test_two_folders_are_measured_without_a_model(tmp_path, monkeypatch):
    made, real = save(tmp_path / "made", 9), save(tmp_path / "real", 8, first=6, size=20)
    both = [f"--pictures={made}", f"--reference={real}", "--protocol=emoji"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = main(*both, f"--out={tmp_path / 'r.json'}").stdout
    assert "left out, since there is no model: retrieval, ceiling, bound, reconstruction" in said
    assert (
        f"{made} has 9 images; the protocol emoji has 512" in said
        and "there are no plots without matplotlib" in said
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["pictures"]["images"] == 9
    resized = "bicubic (Pillow), from 20 x 20 to 16 x 16"
    assert f"real images are resized for VGG16: {resized}" in said
    assert result["pictures"]["reference"] == {
        "folder": str(real),
        "resizing": resized,
        "images": 8,
        "distinct": 8,
        "held": 8,
    }
    assert result["pictures"]["generated"].keys() == {
        "vgg_kid",
        "vgg_kid_interval",
        "vgg_kid_std",
        "vgg_kid_subset_size",
    }
    assert result["pictures"]["generated"]["vgg_kid_subset_size"] == 4
    assert result["protocol"]["measures"] == ["kid"]
    assert (tmp_path / "r.png").exists() and not (tmp_path / "r-plots.png").exists()
    main(*both, "--images=4", "--seed=3", f"--out={tmp_path / 'r.json'}")
    result = json.loads((tmp_path / "r.json").read_text())
    assert (
        result["pictures"]["images"],
        result["protocol"]["images"],
        result["protocol"]["seed"],
    ) == (4, 4, 3)


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (
            [],
            "--workdir is missing; for a first try take --workdir=pretrained/emoji64, or name "
            "folders with --pictures",
        ),
        (["--pictures={tmp}/made", "--reference={tmp}/made"], "--workdir is missing"),
        (
            ["--workdir={workdir}", "--out={tmp}/r.png"],
            "--out is a JSON file, such as results/mine.json, got {tmp}/r.png",
        ),
        (
            ["--workdir={workdir}", "--out={tmp}/r.json", "--calls=11"],
            "calls must be in 1..10, got 11",
        ),
        (
            ["--workdir={workdir}", "--out={tmp}/r.json", "--reference={tmp}/gone"],
            "there is no folder {tmp}/gone of images",
        ),
        (
            ["--pictures={tmp}/made", "--reference={tmp}/made", "--protocol=emoji", "--calls=3"],
            "--calls is for the model in a --workdir",
        ),
        (
            ["--pictures={tmp}/gone", "--reference={tmp}/made", "--protocol=emoji"],
            "there is no folder {tmp}/gone of images",
        ),
        (
            ["--pictures={tmp}/made", "--reference={tmp}/two", "--protocol=emoji"],
            "at least 4 generated and 4 real images, got 4 and 2",
        ),
        (
            ["--pictures={tmp}/sizes", "--reference={tmp}/made", "--protocol=emoji"],
            "differ in size: 00.png has 16 x 16 pixels",
        ),
        (
            ["--pictures={tmp}/made", "--reference={tmp}/s.npz", "--protocol=emoji"],
            "only give a Fréchet distance",
        ),
        (
            ["--workdir={workdir}", "--out={tmp}/r.json", "--data=cub"],
            "--data is SOURCE:DIR with one of the sources coco, cub",
        ),
        (
            ["--workdir={workdir}", "--out={tmp}/r.json", "--data=cub:{tmp}/gone"],
            "there is no folder {tmp}/gone: CUB-200 is",
        ),
        (
            [
                "--pictures={tmp}/made",
                "--reference={tmp}/made",
                "--protocol=adm",
                "--inception={tmp}/none.pth",
            ],
            "there are no Inception weights {tmp}/none.pth: download https://",
        ),
        (
            ["--workdir={workdir}", "--out={tmp}/r.json", "--protocol=clean", "--inception={tmp}"],
            "there are no Inception weights {tmp}/pt_inc",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_made(workdir, tmp_path, arguments, sentence):
    save(tmp_path / "made", 4)
    save(tmp_path / "two", 2)
    save(tmp_path / "sizes", 3)
    Image.new("RGB", (20, 20)).save(tmp_path / "sizes" / "10.png")
    np.savez(tmp_path / "s.npz", mu=np.zeros(3))
    fill = lambda text: text.format(workdir=workdir, tmp=tmp_path)
    done = main(*map(fill, arguments), ok=False)
    last = done.stderr.splitlines()[-1]  # after progress bars
    assert done.returncode == 2 and last.startswith("error: ") and fill(sentence) in last
    assert not (tmp_path / "r").exists() and not (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_published_weights_give_what_their_networks_give(tmp_path, monkeypatch):
    """Random weights in the formats in which InceptionV3 and CLIP are published, on folders;
    batches of four, or it would take long.
    """
    size, tokenizer = 24, ClipTokenizer.load(write_folder(tmp_path / "clip", VOCABULARY, MERGES))
    image = ClipImage(size=size, patch=8, width=64, layers=1, heads=1, embedding=20)
    caption = ClipCaption(
        ClipText(
            vocabulary=tokenizer.vocabulary, length=tokenizer.length, width=64, layers=1, heads=1
        ),
        embedding=20,
    )
    rng = np.random.default_rng(0)
    inputs = {
        "image": (image, jnp.zeros((1, size, size, 3))),
        "caption": (caption, jnp.zeros((1, tokenizer.length), jnp.int32)),
    }
    draw = lambda shapes, scale: jax.tree.map(
        lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes
    )
    clip = {
        name: draw(jax.eval_shape(network.init, jax.random.key(0), x)["params"], 0.2)
        for name, (network, x) in inputs.items()
    }
    save_file(invert(clip, clip_towers.RULES), tmp_path / "clip" / "model.safetensors")
    pixels = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    network = draw(jax.eval_shape(InceptionV3().init, jax.random.key(0), pixels)["params"], 0.04)
    norm = lambda c: {
        "weight": np.ones(c),
        "bias": np.zeros(c),
        "running_mean": np.zeros(c),
        "running_var": np.full(c, 1 - 1e-3),
    }
    state = {}
    for key, value in invert(network, inception.RULES).items():
        if key.endswith("conv.weight"):
            state |= {
                key.replace("conv.weight", f"bn.{k}"): v.astype(np.float32)
                for k, v in norm(len(value)).items()
            }
        if not key.endswith("conv.bias"):
            state[key] = value
    save_file(state, tmp_path / "inception.safetensors")
    made_ = {}

    def once(name, make):
        def get(*arguments):
            made_[name] = arguments, made_[name][1] if name in made_ else make(*arguments, batch=4)
            return made_[name][1]

        return get

    monkeypatch.setattr(
        evaluator.features, "inception", once("inception", evaluator.features.inception)
    )
    monkeypatch.setattr(evaluator.features, "clip", once("clip", evaluator.features.clip))
    save(tmp_path / "made", 10, size=20, captions=True)
    save(tmp_path / "real", 7, size=32, first=5)
    main(
        f"--pictures={tmp_path / 'made'}",
        f"--reference={tmp_path / 'real'}",
        "--protocol=vqdiffusion-cub",
        f"--clip={tmp_path / 'clip'}",
        f"--inception={tmp_path / 'inception.safetensors'}",
        f"--out={tmp_path / 'r.json'}",
    )
    got = json.loads((tmp_path / "r.json").read_text())["pictures"]["generated"]
    made, real = (
        np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / n).glob("*.png"))])
        for n in ("made", "real")
    )
    (path, resizing), extract = made_["inception"]
    assert (path, resizing) == (
        str(tmp_path / "inception.safetensors"),
        "pytorch-fid",
    ) and extract.name == "Inception 2048 (pytorch-fid)"
    x, y = extract(made), extract(real)
    assert got["fid"] == pytest.approx(
        frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)), rel=1e-4
    )
    towers = made_["clip"][1]
    texts = towers.captions(tokenizer([f"picture {i}" for i in range(10)]))
    assert got["clip_score"] == pytest.approx(clip_score(towers.images(made), texts), rel=1e-5)
    assert got.keys() == {
        "fid",
        "kid",
        "kid_interval",
        "kid_std",
        "kid_subset_size",
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score",
        "inception_score_std",
        "clip_score",
    }
