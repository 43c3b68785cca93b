"""`vqd convert` of foreign files that are not as they should be, and of names on the hub."""

import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import hostile
from helpers.commands import run_in_process
from helpers.diffusers_folder import cache, make_folder
from helpers.workdirs import items, same_arrays
from vqd_jax.core.errors import UserError
from vqd_jax.inference import convert
from vqd_jax.models.weights import exported as own

KERNEL = "transformer_blocks.1.attn1.to_q.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("diffusers"))


def refused(*arguments):
    done = run_in_process("convert", *arguments, ok=False)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def damaged(folder, tmp_path):
    """The folder with three numbers that are none."""
    shutil.copytree(folder, tmp_path / "damaged")
    file = tmp_path / "damaged/transformer/diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    arrays[KERNEL][0, :3] = np.nan, np.inf, -np.inf
    save_file(arrays, file)
    return tmp_path / "damaged"


def test_weights_that_are_nan_are_refused_unless_they_are_allowed(damaged, tmp_path):
    where = f"--workdir={tmp_path / 'run'}"
    said = refused(damaged, where)
    assert "3 of the 144 numbers in 'blocks.1.attn1.query.weight' are NaN or infinite" in said
    assert said.endswith("; --allow_nan converts them as they are\n")
    assert not (tmp_path / "run").exists()
    run_in_process("convert", damaged, where, "--allow_nan")
    weights = items(tmp_path / "run", "diffusion")[1]["weights"]
    kernel = weights["denoiser"]["block1"]["self_attention"]["qkv"]["kernel"]
    assert np.count_nonzero(~np.isfinite(kernel)) == 3
    run_in_process("export", where, f"--out={tmp_path / 'model.safetensors'}")
    again = f"--workdir={tmp_path / 'again'}"
    said = refused(tmp_path / "model.safetensors", again)
    assert "3 of the 432 numbers in 'diffusion/denoiser/block1/self_attention/qkv/kernel'" in said
    run_in_process("convert", tmp_path / "model.safetensors", again, "--allow_nan")
    same_arrays(weights, items(tmp_path / "again", "diffusion")[1]["weights"])


def test_a_name_on_the_hub_is_converted(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    where = f"--workdir={tmp_path / 'run'}"
    said = refused("microsoft/vq-diffusion-ithq", where)
    assert "there is no folder microsoft/vq-diffusion-ithq, and it could not be downloaded" in said
    cache(folder, tmp_path / "hub")
    run_in_process("convert", "microsoft/vq-diffusion-ithq", where)
    found, run = items(tmp_path / "run", "diffusion")[1], folder.parent / "run"
    same_arrays(found["weights"], items(run, "diffusion")[1]["weights"])
    assert found["tokenizer"] == items(run, "diffusion")[1]["tokenizer"]


def test_a_vocabulary_on_the_hub_is_taken(folder, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: (
            asked.append((name, allow_patterns)) or str(folder / "tokenizer")
        ),
    )
    where = (folder, f"--workdir={tmp_path / 'run'}")
    run_in_process("convert", *where, "--tokenizer=openai/clip-vit-base-patch32")
    assert asked == [("openai/clip-vit-base-patch32", ["vocab.json", "merges.txt"])]


def test_images_of_a_senseless_size_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "x")
    config = tmp_path / "x/transformer/config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 1000000'))
    said = refused(tmp_path / "x", f"--workdir={tmp_path / 'run'}")
    assert "images of 2,000,000 pixels a side, at most 8,192 are taken" in said


def test_a_remap_file_without_arrays_is_one_sentence(folder, tmp_path):
    (tmp_path / "remap.pt").write_bytes(hostile.zipped(hostile.PROTOCOL + b"}."))
    said = refused(folder, f"--workdir={tmp_path / 'run'}", f"--remap={tmp_path / 'remap.pt'}")
    assert "a remap file has a token for each of the 20 codes" in said


@pytest.mark.parametrize("key", convert.LAYERS)
def test_a_file_of_ours_with_endless_layers_is_refused(key, tmp_path):
    section, name = key.split(".")
    stage = {"step": 1, "config": {section: {name: 10**9}}, "weights": {"codes": np.zeros((2, 2))}}
    own.write(tmp_path / "model.safetensors", {"vqvae": stage}, {})
    with pytest.raises(UserError, match="the weights have 1,000,000,000 layers; at most 200"):
        convert.exported(tmp_path / "model.safetensors")
