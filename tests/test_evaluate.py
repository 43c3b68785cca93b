"""The command: a model and two folders get one JSON, a page and plots; a killed run goes on; bad input is one sentence."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from test_export import make_workdir

from vqd_jax import evaluate
from vqd_jax.errors import UserError

ROOT = Path(__file__).parents[1]


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
    data = {"data.source": "folder", "folder.path": str(pictures), "folder.held_out_items": 0.3, "evaluation.name": "cells",
            "evaluation.images": 9, "evaluation.bound_images": 4, "evaluation.draws": 1, "evaluation.subsets": 2}
    return make_workdir(tmp_path_factory.mktemp("model"), data)


def main(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", *map(str, arguments)])
        evaluate.main([])


def command(*arguments):
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen([sys.executable, "-m", "vqd_jax.evaluate", *map(str, arguments)], cwd=ROOT, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(*arguments):
    done = command(*arguments)
    out, error = done.communicate(timeout=900)
    assert done.returncode == 0, out + error
    return out


def untimed(text):
    return re.sub(r'"images_per_second": [\d.e-]+', "", text)


def test_a_killed_run_goes_on_with_the_same_bits(workdir, tmp_path):
    """SIGKILL as soon as the second batch of five is there."""
    arguments = [f"--workdir={workdir}", f"--cache={tmp_path / 'cache'}", "--batch=2"]
    printed = finished(*arguments, f"--out={tmp_path / 'whole' / 'r.json'}")
    killed = command(*arguments, f"--out={tmp_path / 'killed' / 'r.json'}")
    pictures, deadline = tmp_path / "killed" / "r" / "seen_cells", time.monotonic() + 600
    while not (pictures / "000003.png").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "r.json").exists()
    before = {path: path.stat().st_mtime_ns for path in pictures.glob("*.png")}
    finished(*arguments, f"--out={tmp_path / 'killed' / 'r.json'}")
    assert sum(path.stat().st_mtime_ns != changed for path, changed in before.items()) < 2  # of a batch that was not whole
    made = [sorted((path.relative_to(tmp_path / run), path.read_bytes()) for path in (tmp_path / run).rglob("*.png"))
            for run in ("whole", "killed")]
    assert made[0] == made[1] and len(made[0]) == 9 + 2
    texts = [(tmp_path / run / "r.json").read_text() for run in ("whole", "killed")]
    assert untimed(texts[0]) == untimed(texts[1])
    result = json.loads(texts[0])
    assert result["protocol"]["name"] == "emoji" and result["protocol"]["images"] == 9 and result["protocol"]["subsets"] == 2
    assert result["provenance"]["steps"] == {"vqvae": 7, "diffusion": 9} and result["config"]["evaluation"]["name"] == "cells"
    assert len(result["provenance"]["weights"]) == 64 and result["seen_cells"]["images"] == 9 and "held_out_cells" not in result
    assert result["gallery"]["images"] == 14 and result["seen_cells"]["reference"] == {"images": 9, "distinct": 9, "held": 9}
    assert "best and worst in" in printed and "retrieval@1" in printed
    for name in ("r.png", "r-plots.png"):
        assert Image.open(tmp_path / "whole" / name).size[0] > 300


def test_two_folders_are_measured_without_a_model(tmp_path, capsys, monkeypatch):
    made, real = save(tmp_path / "made", 9), save(tmp_path / "real", 8, first=6, size=20)
    both = [f"--pictures={made}", f"--reference={real}", "--protocol=emoji"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(*both, f"--out={tmp_path / 'r.json'}")
    said = capsys.readouterr().out
    assert "left out, since there is no model: retrieval, ceiling, bound, reconstruction" in said
    assert f"{made} has 9 pictures; those of the protocol emoji are 512" in said and "there are no plots without matplotlib" in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["pictures"]["images"] == 9
    assert result["pictures"]["reference"] == {"folder": str(real), "images": 8, "distinct": 8, "held": 8}
    assert result["pictures"]["generated"].keys() == {"vgg_kid", "vgg_kid_std"} and result["protocol"]["measures"] == ["kid"]
    assert (tmp_path / "r.png").exists() and not (tmp_path / "r-plots.png").exists()
    main(*both, "--images=4", "--seed=3", f"--out={tmp_path / 'r.json'}")
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["pictures"]["images"], result["protocol"]["images"], result["protocol"]["seed"]) == (4, 4, 3)


@pytest.mark.parametrize("arguments,sentence", [
    ([], "--workdir is missing; for a first try take --workdir=pretrained/emoji, or name folders with --pictures"),
    (["--pictures={tmp}/made", "--reference={tmp}/made"], "--workdir is missing"),
    (["--workdir={workdir}", "--out={tmp}/r.png"], "--out is a JSON file, such as results/mine.json, got {tmp}/r.png"),
    (["--workdir={workdir}", "--out={tmp}/r.json", "--calls=11"], "calls must be in 1..10, got 11"),
    (["--workdir={workdir}", "--out={tmp}/r.json", "--reference={tmp}/gone"], "there is no folder {tmp}/gone of pictures"),
    (["--pictures={tmp}/made", "--reference={tmp}/made", "--protocol=emoji", "--calls=3"], "--calls is for the model in a --workdir"),
    (["--pictures={tmp}/gone", "--reference={tmp}/made", "--protocol=emoji"], "there is no folder {tmp}/gone of pictures"),
    (["--pictures={tmp}/made", "--reference={tmp}/two", "--protocol=emoji"], "at least 4 pictures of each kind, got 4 and 2"),
    (["--pictures={tmp}/sizes", "--reference={tmp}/made", "--protocol=emoji"], "are of several sizes, 16 x 16 as 00.png and 20 x 20"),
    (["--pictures={tmp}/made", "--reference={tmp}/s.npz", "--protocol=emoji"], "only a Fréchet distance comes"),
    (["--workdir={workdir}", "--out={tmp}/r.json", "--data=cub"], "--data is SOURCE:DIR with one of the sources cub, coco"),
    (["--workdir={workdir}", "--out={tmp}/r.json", "--data=cub:{tmp}/gone"], "There is no folder {tmp}/gone: CUB-200 is"),
    (["--pictures={tmp}/made", "--reference={tmp}/made", "--protocol=adm", "--inception={tmp}/none.pth"],
     "there are no Inception weights {tmp}/none.pth: fetch https://"),
    (["--workdir={workdir}", "--out={tmp}/r.json", "--protocol=clean", "--inception={tmp}"],
     "there are no Inception weights {tmp}/pt_inc")])
def test_bad_input_is_one_sentence_before_anything_is_made(workdir, tmp_path, arguments, sentence):
    save(tmp_path / "made", 4)
    save(tmp_path / "two", 2)
    save(tmp_path / "sizes", 3)
    Image.new("RGB", (20, 20)).save(tmp_path / "sizes" / "10.png")
    np.savez(tmp_path / "s.npz", mu=np.zeros(3))
    fill = lambda text: text.format(workdir=workdir, tmp=tmp_path)
    with pytest.raises(UserError, match=re.escape(fill(sentence))):
        main(*map(fill, arguments))
    assert not (tmp_path / "r").exists() and not (tmp_path / "r.json").exists()
