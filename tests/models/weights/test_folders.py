"""Folders of diffusers and transformers in every layout, local, cached and on the hub: the same
arrays as from one file for each part.
"""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from helpers.diffusers_folder import cache, make_folder, rewrite, write_weights
from vqd_jax.core.errors import UserError
from vqd_jax.models.weights import clip, released
from vqd_jax.models.weights.folders import read_weights, weights_in

LAYOUTS = [
    dict(kind="bin"),
    dict(variant=".fp16"),
    dict(kind="bin", variant=".fp16"),
    dict(shards=3),
    dict(kind="bin", shards=2),
    dict(variant=".fp16", shards=2),
]
NAME = "microsoft/vq-diffusion-ithq"
PARTS = ("codec", "denoiser", "text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture(scope="module")
def want(folder):
    return released.read(folder)


def same(found, want, dtype=np.float32):
    assert found.settings == want.settings and found.tokenizer.is_dir()
    for name in PARTS:
        got, arrays = getattr(found, name), getattr(want, name)
        assert got.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(got[key], array.astype(dtype))
    np.testing.assert_array_equal(found.null, want.null.astype(dtype))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_has_the_same_arrays(folder, want, layout, tmp_path):
    shutil.copytree(folder, tmp_path / "x")
    rewrite(tmp_path / "x", **({"shards": 1} | layout))
    same(released.read(tmp_path / "x"), want, np.float16 if "variant" in layout else np.float32)


def test_full_precision_is_read_before_float16_and_one_file_before_parts(tmp_path):
    names = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.fp16.safetensors",
        "model.safetensors.index.fp16.json",
        "pytorch_model.fp16.bin",
    ]
    assert weights_in(tmp_path) is None
    for name in reversed(names):
        (tmp_path / name).touch()
        assert weights_in(tmp_path) == tmp_path / name


def index(folder, where):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": where}))
    return path


@pytest.mark.parametrize(
    "where,sentence",
    [
        ({"a": "x.safetensors", "b": "y.safetensors"}, "the part 'y.safetensors' of .* is missing"),
        ({"a": "../x.safetensors"}, "lists '../x.safetensors', which is not a file in its folder"),
        ({"a": "/etc/passwd"}, "lists '/etc/passwd', which is not a file in its folder"),
        ({"a": "..\\x"}, "which is not a file in its folder"),
        ({"a": ".."}, "the part '..' of .* is missing"),
        ({"a": ""}, "the part '' of .* is missing"),
        ({"a": "x\0"}, "which is not a file in its folder"),
        ({"a\n": "x.safetensors"}, r"x.safetensors has no 'a\\n', which .* lists"),
        ({"a": ["x"]}, "has no weight_map"),
        (["x"], "has no weight_map"),
    ],
)
def test_a_wrong_index_is_one_sentence(where, sentence, tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "below").mkdir()
    shutil.copy(tmp_path / "x.safetensors", tmp_path / "below")
    with pytest.raises(UserError, match=sentence) as caught:
        read_weights(index(tmp_path / "below", where))
    assert "\n" not in str(caught.value)


def test_a_clip_in_parts_is_read(folder, tmp_path):
    arrays = load_file(folder / "text_encoder/model.safetensors")
    write_weights(tmp_path / "model.safetensors", arrays)
    rewrite(tmp_path, shards=2)
    assert clip.read_clip(tmp_path).keys() == arrays.keys()


def test_a_cache_folder_is_read(folder, want, tmp_path):
    repository = cache(folder, tmp_path)
    same(released.read(repository), want)
    (repository / "snapshots" / "older").mkdir()
    same(released.read(repository), want)
    for name in ("older/../..", "f" * 40):
        (repository / "refs/main").write_text(name)
        with pytest.raises(UserError, match="lacks the snapshot '.*' that .*main names"):
            released.read(repository)
    (repository / "refs/main").unlink()
    with pytest.raises(UserError, match="cannot read .*main"):
        released.read(repository)
    (repository / "snapshots" / "older").rmdir()
    same(released.read(repository), want)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_name_is_read_from_the_cache(folder, want, offline):
    cache(folder, offline)
    same(released.read(NAME), want)


def test_a_name_that_is_out_of_reach_is_one_sentence(offline):
    with pytest.raises(
        UserError, match=r"could not be downloaded from the .* hub \(Local"
    ) as caught:
        released.read(NAME)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no weight file .*model.pth"):
        released.read("runs/model.pth")


@pytest.mark.parametrize(
    "layouts,loaded",
    [
        ([dict(), dict(kind="bin"), dict(variant=".fp16")], "model.safetensors"),
        ([dict(kind="bin"), dict(variant=".fp16")], "model.bin"),
        ([dict(kind="bin", shards=2)], "model-0000[12]-of-00002.bin|model.bin.index.json"),
        ([dict(variant=".fp16")], "model.fp16.safetensors"),
    ],
    ids=["all", "pickles", "parts", "float16"],
)
def test_only_what_is_read_is_downloaded(folder, want, layouts, loaded, monkeypatch, tmp_path):
    for layout in layouts:
        shutil.copytree(folder, tmp_path / "one")
        rewrite(tmp_path / "one", **layout)
        shutil.copytree(tmp_path / "one", tmp_path / "repository", dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "one")
    for name in ("README.md", "safety_checker/model.safetensors", "tokenizer/tokenizer.json"):
        (tmp_path / "repository" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "repository" / name).touch()

    def download(name, allow_patterns):
        assert name == NAME
        files = [
            p.relative_to(tmp_path / "repository") for p in (tmp_path / "repository").rglob("*")
        ]
        for file in filter_repo_objects(map(str, files), allow_patterns=allow_patterns):
            (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "repository" / file, tmp_path / "copy" / file)
        return str(tmp_path / "copy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    float16 = "fp16" in loaded
    same(released.read(NAME), want, np.float16 if float16 else np.float32)
    names = {p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*.*")}
    weights = {name for name in names if not name.endswith((".txt", "config.json", "vocab.json"))}
    assert weights - {"model_index.json"} == {
        p.relative_to(tmp_path / "repository").as_posix()
        for end in loaded.split("|")
        for part in ("transformer", "vqvae", "text_encoder", "learned*")
        for p in (tmp_path / "repository").glob(f"{part}/*{end}")
    }
    assert names - weights == {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*.*")
        if p.suffix != ".safetensors"
        and p.name not in ("model_index.json", "tokenizer_config.json")
    }


def test_a_repository_of_another_model_is_not_downloaded(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.extend(allow_patterns) or str(tmp_path),
    )
    with pytest.raises(UserError, match="has no model_index.json"):
        released.read(NAME)
    assert not [pattern for pattern in asked if "model." in pattern]
