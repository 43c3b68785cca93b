"""Adapter files: PEFT's layout to the letter, files that PEFT wrote, those of earlier versions, and
one sentence for all others. `test_lora_peft.py` compares with PEFT itself.
"""

import json
import os
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers.adapted_stage import drawn, moved, stage_of
from helpers.commands import run_in_process
from helpers.shipped import SHIPPED
from vqd_jax.core.errors import UserError
from vqd_jax.inference import pipeline
from vqd_jax.models.weights.denoiser import NAMES, RULES
from vqd_jax.models.weights.rules import inverse, invert, rename
from vqd_jax.runtime.checkpoint import widen
from vqd_jax.stages import lora_files
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.lora_files import CONFIG, WEIGHTS

RANK, WIDTH = 2, 8  # of the small stage; its text has the same width
SIZES = {  # (out, in) of the layers of a block
    "attn1.to_q": (WIDTH, WIDTH),
    "attn1.to_k": (WIDTH, WIDTH),
    "attn1.to_v": (WIDTH, WIDTH),
    "attn1.to_out.0": (WIDTH, WIDTH),
    "attn2.to_q": (WIDTH, WIDTH),
    "attn2.to_k": (WIDTH, WIDTH),
    "attn2.to_v": (WIDTH, WIDTH),
    "attn2.to_out.0": (WIDTH, WIDTH),
    "ff.net.0.proj": (2 * WIDTH, WIDTH),
    "ff.net.2": (WIDTH, 2 * WIDTH),
}
PREFIX = "base_model.model.transformer_blocks"
ONE = f"{PREFIX}.1.attn2.to_k"


def make(kind="text", **fields):
    """(stage, parameters) with an adapter that changes something."""
    stage = stage_of(kind, **fields)
    return stage, jax.tree.map(np.asarray, moved(drawn(stage)))


@pytest.fixture
def written(tmp_path):
    """(stage, parameters, folder)."""
    stage, params = make()
    lora_files.write(tmp_path / "adapter", stage.adapter, params)
    return stage, params, tmp_path / "adapter"


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def torch_weights(denoiser):
    """The denoiser's arrays by diffusers' names, in PyTorch's layout."""
    return rename(invert(denoiser, RULES), [inverse(*pair) for pair in NAMES])


# ---- what is written


def test_the_layout_is_that_of_peft(written):
    stage, params, folder = written
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((folder / CONFIG).read_text()) == {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": sorted(SIZES),
        "task_type": None,
    }
    arrays = load_file(folder / WEIGHTS)
    assert {key: (x.dtype, x.shape) for key, x in arrays.items()} == {
        f"{PREFIX}.{block}.{layer}.lora_{matrix}.weight": (np.float32, shape)
        for block in (0, 1)
        for layer, (out, into) in SIZES.items()
        for matrix, shape in (("A", (RANK, into)), ("B", (out, RANK)))
    }
    with safe_open(folder / WEIGHTS, "numpy") as file:
        base = lora_files.fingerprint(params["denoiser"])
        assert file.metadata() == {"format": "pt", "vqd_jax.base": base}


def test_an_adapter_of_attention_alone_names_its_layers(tmp_path):
    stage, params = make(kernels="attention", alpha=2.5)
    lora_files.write(tmp_path, stage.adapter, params)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["lora_alpha"] == 2.5
    assert config["target_modules"] == sorted(name for name in SIZES if name.startswith("attn"))


def test_the_names_are_those_of_the_exported_transformer():
    denoiser = make()[1]["denoiser"]
    weights = torch_weights(denoiser)
    named = [
        f"{layer}.weight" for path in flatten_dict(denoiser) for layer in lora_files._layers(path)
    ]
    shapes = {name: weights[name].shape for name in named}  # KeyError for a name it does not have
    assert shapes == {
        f"transformer_blocks.{block}.{layer}.weight": size
        for block in (0, 1)
        for layer, size in SIZES.items()
    }


def test_the_matrices_change_the_exported_weights_as_the_adapter_does(written):
    stage, params, folder = written
    arrays = load_file(folder / WEIGHTS)
    base = torch_weights(params["denoiser"])
    merged = torch_weights(
        jax.device_get(stage.adapter.merged(params["denoiser"], params["adapter"]))
    )
    changed = set()
    for key in arrays:
        name = key.removeprefix("base_model.model.").rpartition(".lora_")[0]
        down, up = (arrays[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        change = 6.0 / RANK * up.astype(np.float64) @ down
        np.testing.assert_allclose(
            merged[f"{name}.weight"], base[f"{name}.weight"] + change, rtol=0, atol=1e-6
        )
        changed.add(f"{name}.weight")
    assert {name for name in base if (base[name] != merged[name]).any()} == changed


def test_matrices_of_convolutions_are_convolutions(tmp_path):
    """As of PEFT's Conv2d: the change is that of a convolution and a 1x1 convolution after it."""
    stage, params = make("none")
    lora_files.write(tmp_path, stage.adapter, params)
    arrays = load_file(tmp_path / WEIGHTS)
    down, up = (arrays[f"{PREFIX}.0.ff.net.0.proj.lora_{x}.weight"] for x in "AB")
    assert down.shape == (RANK, WIDTH, 3, 3) and up.shape == (2 * WIDTH, RANK, 1, 1)
    kernel = lambda denoiser: denoiser["block0"]["mlp_in"]["kernel"]  # (h, w, in, out)
    merged = stage.adapter.merged(params["denoiser"], params["adapter"])
    np.testing.assert_allclose(
        kernel(merged) - kernel(params["denoiser"]),
        6.0 / RANK * np.einsum("rihw,or->hwio", down, up[..., 0, 0]),
        rtol=0,
        atol=1e-5,
    )


def test_files_are_replaced_have_the_modes_of_new_files_and_leave_nothing(written):
    stage, params, folder = written
    (folder / "README.md").write_text("mine")
    before = load_file(folder / WEIGHTS)
    old = os.umask(0o027)
    try:
        lora_files.write(folder, stage.adapter, moved(params))
    finally:
        os.umask(old)
    after = load_file(folder / WEIGHTS)
    assert before.keys() == after.keys() and any((before[k] != after[k]).any() for k in after)
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert {(folder / name).stat().st_mode & 0o777 for name in (CONFIG, WEIGHTS)} == {0o640}
    assert (folder / "README.md").read_text() == "mine"


def test_weights_without_an_adapter_are_one_sentence(tmp_path):
    params = {name: x for name, x in make()[1].items() if name != "adapter"}
    with pytest.raises(UserError, match="holds a model that was trained without an adapter"):
        lora_files.write(tmp_path / "run" / "adapter", Adapter(rank=2), params)
    assert not (tmp_path / "run").exists()


# ---- what is read


@pytest.mark.parametrize("kind", ["text", "none"])
def test_a_folder_gives_the_same_kernels(kind, tmp_path):
    stage, params = make(kind)
    lora_files.write(tmp_path, stage.adapter, params)
    for path in (tmp_path, tmp_path / WEIGHTS):
        for scale in (1.0, -0.5):
            want = stage.adapter.merged(params["denoiser"], params["adapter"], scale)
            same(lora_files.apply(path, params["denoiser"], scale=scale), want)
    same(lora_files.apply(tmp_path, params["denoiser"], scale=0.0), params["denoiser"])


def write_peft(folder, arrays, **config):
    """A folder as PEFT writes it, without a word of the base model."""
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / WEIGHTS, {"format": "pt"})
    plain = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["to_q"]}
    (folder / CONFIG).write_text(json.dumps(plain | config))
    return folder


@pytest.mark.parametrize(
    "config,scale", [({}, 5 / 3), ({"use_rslora": True, "bias": "none"}, 5 / 3**0.5)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_layers_that_are_one_kernel_here_may_have_matrices_of_their_own(
    dtype, config, scale, tmp_path
):
    """Or none, as the values here."""
    params, rng = make()[1], np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    arrays = {}
    for layer in ("0.attn1.to_q", "0.attn1.to_k", "1.attn2.to_v"):
        out, into = SIZES[layer[2:]]
        arrays[f"{PREFIX}.{layer}.lora_A.weight"] = normal(3, into)
        arrays[f"{PREFIX}.{layer}.lora_B.weight"] = normal(out, 3)
    folder = write_peft(tmp_path / "peft", arrays, **config)
    base = torch_weights(params["denoiser"])
    merged = torch_weights(jax.device_get(lora_files.apply(folder, params["denoiser"])))
    for name, want in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in arrays:
            down, up = (arrays[f"{key}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            want = want + scale * up @ down
        np.testing.assert_allclose(merged[name], want, rtol=0, atol=1e-5)


def test_a_repository_of_the_hub_is_downloaded(written, monkeypatch):
    stage, params, folder = written
    asked = []
    download = lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    want = stage.adapter.merged(params["denoiser"], params["adapter"])
    same(lora_files.apply("somebody/some-adapter", params["denoiser"]), want)
    assert asked == [("somebody/some-adapter", [CONFIG, WEIGHTS])]


def test_a_base_in_half_precision_or_with_a_negative_zero_is_the_same_base(written):
    _, params, _ = written
    mark = lora_files.fingerprint(params["denoiser"])
    half = jax.tree.map(lambda x: x.astype(np.float16), params["denoiser"])
    assert lora_files.fingerprint(half) == lora_files.fingerprint(widen(half)) == mark
    zeros = [
        jax.tree.map(lambda x, zero=zero: np.full_like(x, zero), params["denoiser"])
        for zero in (0.0, -0.0)
    ]
    assert lora_files.fingerprint(zeros[0]) == lora_files.fingerprint(zeros[1]) != mark


def refused(path, denoiser, sentence):
    with pytest.raises(UserError) as error:
        lora_files.apply(path, denoiser)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_another_base_is_one_sentence(written):
    _, params, folder = written
    other = jax.tree.map(np.copy, params["denoiser"])
    other["block1"]["mlp_out"]["bias"][3] += 0.01
    refused(folder, other, "was trained on another model than this one")


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_damaged_weights_are_one_sentence(written, cut):
    _, params, folder = written
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:cut])
    refused(folder, params["denoiser"], "is not a safetensors file, or it is damaged")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_one_sentence(written, name):
    _, params, folder = written
    (folder / name).unlink()
    refused(folder, params["denoiser"], f"{folder} holds no adapter, since it has no {name}")


@pytest.mark.parametrize("text", ['{"peft_type": "LORA",', "[1]", "", "\x00\xff"])
def test_a_damaged_config_is_one_sentence(written, text):
    _, params, folder = written
    (folder / CONFIG).write_text(text)
    refused(folder, params["denoiser"], str(folder / CONFIG))


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"peft_type": "LOHA"}, "a PEFT adapter of the type 'LOHA', not 'LORA'"),
        ({"peft_type": None}, "of the type None"),
        ({"use_dora": True}, "not supported: 'use_dora': True"),
        ({"bias": "lora_only"}, "not supported: 'bias': 'lora_only'"),
        ({"modules_to_save": ["out"]}, "not supported: 'modules_to_save': a list"),
        ({"rank_pattern": {"to_q": 4}}, "not supported: 'rank_pattern': a dict"),
        ({"alpha_pattern": {"to_q": 4}}, "not supported: 'alpha_pattern': a dict"),
        ({"init_lora_weights": "pissa"}, "not supported: 'init_lora_weights': 'pissa'"),
        ({"an_option_of_later": 7}, "not supported: 'an_option_of_later': 7"),
        ({"r": 0}, "r and lora_alpha must be positive numbers, got 0 and 5"),
        ({"r": "3"}, "got '3' and 5"),
        ({"r": 10**40}, "r and lora_alpha must be positive"),
        ({"lora_alpha": float("nan")}, "got 3 and nan"),
        ({"lora_alpha": None}, "got 3 and None"),
        ({"r": 4}, "has the shape (3, 8), and this model with r=4 takes (4, 8)"),
    ],
    ids=str,
)
def test_a_config_that_is_not_supported_is_one_sentence(changes, sentence, tmp_path):
    arrays = {f"{ONE}.lora_A.weight": np.ones((3, WIDTH), np.float32)}
    arrays[f"{ONE}.lora_B.weight"] = np.ones((WIDTH, 3), np.float32)
    folder, denoiser = write_peft(tmp_path / "peft", arrays, **changes), make()[1]["denoiser"]
    refused(folder, denoiser, sentence)
    accepted = {"init_lora_weights": "gaussian", "fan_in_fan_out": False, "loftq_config": {}}
    lora_files.apply(write_peft(folder, arrays, **accepted), denoiser)


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({f"{ONE}.lora_B.weight": None}, f"has no '{ONE}.lora_B.weight'"),
        ({f"{ONE}.lora_A.weight": None}, f"has no '{ONE}.lora_A.weight'"),
        ({f"{ONE}.lora_A.weight": (3, 5)}, "has the shape (3, 5), and this model with r=3 takes"),
        ({f"{ONE}.lora_B.weight": (8,)}, "has the shape (8,), and this model"),
        ({f"{ONE}.lora_magnitude_vector": (8,)}, f"has '{ONE}.lora_magnitude_vector', and this"),
        ({f"{PREFIX}.2.attn1.to_q.lora_A.weight": (3, 8)}, "takes none of that name"),
        ({"base_model.model.out.weight": (16, 8)}, "has 'base_model.model.out.weight', and this"),
        ({f"{ONE}.lora_A.weight": None, f"{ONE}.lora_B.weight": None}, "has no arrays"),
        ({f"{ONE}.lora_A.weight": np.inf}, "are NaN or infinite"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else x,
)
def test_arrays_that_do_not_fit_are_one_sentence(changes, sentence, tmp_path):
    arrays = {f"{ONE}.lora_A.weight": np.ones((3, WIDTH), np.float32)}
    arrays[f"{ONE}.lora_B.weight"] = np.ones((WIDTH, 3), np.float32)
    for key, change in changes.items():
        if change is None:
            del arrays[key]
        elif isinstance(change, float):
            arrays[key][0, 1] = change
        else:
            arrays[key] = np.ones(change, np.float32)
    refused(write_peft(tmp_path / "peft", arrays), make()[1]["denoiser"], sentence)


# ---- the single file of earlier versions


@pytest.fixture
def single(tmp_path):
    """(stage, parameters, file)."""
    stage, params = make(kernels="attention")
    about = {"rank": 2, "alpha": 6.0, "kernels": "attention"}
    about["base"] = lora_files.fingerprint(params["denoiser"])
    path = tmp_path / "adapter.safetensors"
    arrays = flatten_dict(params["adapter"], sep="/")
    save_file(arrays, path, {"vqd_jax.adapter": json.dumps(about)})
    return stage, params, path


def test_a_single_file_gives_the_same_kernels(single):
    stage, params, path = single
    for scale in (1.0, -0.5):
        want = stage.adapter.merged(params["denoiser"], params["adapter"], scale)
        same(lora_files.apply(path, params["denoiser"], scale=scale), want)


def test_what_is_no_adapter_of_this_model_is_one_sentence(single):
    stage, params, path = single
    denoiser, parent = params["denoiser"], path.parent
    other = jax.tree.map(np.copy, denoiser)
    other["block1"]["mlp_out"]["bias"][3] += 0.01
    refused(path, other, "was trained on another model than this one")
    refused("gone.safetensors", denoiser, "there is no file or folder 'gone.safetensors'")
    for cut in (0, 5, 100, path.stat().st_size - 1):
        (parent / "cut.safetensors").write_bytes(path.read_bytes()[:cut])
        refused(parent / "cut.safetensors", denoiser, "is not a safetensors file, or it is damaged")
    arrays, about = (
        load_file(path),
        {"rank": 2, "alpha": 6.0, "kernels": "attention", "base": lora_files.fingerprint(denoiser)},
    )

    def refuse(arrays, about, sentence):
        save_file(
            arrays,
            parent / "x.safetensors",
            about if about is None else {"vqd_jax.adapter": json.dumps(about)},
        )
        refused(parent / "x.safetensors", denoiser, sentence)

    for wrong in (None, [], 3, {"rank": 2}, about | {"rank": "2"}):
        refuse(arrays, wrong, "holds no adapter that vqd_jax.main wrote")
    name = next(iter(arrays))
    refuse(
        arrays | {"block7/mlp_in/kernel/up": np.zeros((2, 8), np.float32)},
        about,
        "not expected: block7/mlp_in/kernel/up",
    )
    refuse({n: x for n, x in arrays.items() if n != name}, about, f"missing: {name}")
    refuse(arrays | {name: arrays[name][:1]}, about, f"different: {name} is float32")
    refuse(arrays | {name: arrays[name].astype(np.float16)}, about, f"different: {name} is float16")
    refuse(arrays, about | {"rank": 3}, "different: ")


# ---- the shipped model, which is stored in half precision


@pytest.fixture(scope="module")
def for_shipped(shipped, tmp_path_factory):
    """(adapter, its matrices, folder) with random numbers, for the shipped model."""
    adapter, denoiser = Adapter(rank=2), jax.device_get(shipped.weights["denoiser"])
    rng = np.random.default_rng(0)
    matrices = jax.tree.map(
        lambda s: np.asarray(0.1 * rng.normal(size=s.shape), np.float32),
        jax.eval_shape(adapter.init, jax.random.key(0), denoiser),
    )
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    lora_files.write(folder, adapter, {"denoiser": denoiser, "adapter": matrices})
    return adapter, matrices, folder


def test_a_model_loaded_with_a_folder_is_the_merged_model(shipped, for_shipped):
    adapter, matrices, folder = for_shipped
    base = jax.device_get(shipped.weights)
    merged = pipeline.load(SHIPPED, adapter=folder)
    same(
        jax.device_get(merged.weights),
        base | {"denoiser": adapter.merged(base["denoiser"], matrices)},
    )
    tokens = lambda model: model.tokens(["a google style emoji of a crab"], calls=2)
    assert (tokens(merged) != tokens(shipped)).any()
    zero = pipeline.load(SHIPPED, adapter=folder, adapter_scale=0.0)
    same(jax.device_get(zero.weights), base)


def test_a_model_loaded_with_an_adapter_of_the_hub_is_the_merged_model(
    for_shipped, monkeypatch, tmp_path
):
    shutil.copytree(for_shipped[2], tmp_path / "snapshot")
    download = lambda name, **_: str(tmp_path / "snapshot") if name == "somebody/lora" else None
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load = lambda adapter: jax.device_get(pipeline.load(SHIPPED, adapter=adapter).weights)
    same(load("hf://somebody/lora"), load(for_shipped[2]))


@pytest.mark.parametrize(
    "command,sentence",
    [
        (
            ["sample", "--workdir={base}", "--adapter={other}", "--prompt=x"],
            "was trained on another model than this one",
        ),
        (
            ["sample", "--workdir={base}", "--adapter={base}", "--prompt=x"],
            "{base} holds no adapter, since it has no adapter_config.json",
        ),
        (
            ["sample", "--workdir={base}", "--adapter_scale=0.5", "--prompt=x"],
            "--adapter_scale needs an adapter",
        ),
        (
            ["evaluate", "--workdir={base}", "--adapter={base}/README.md"],
            "is not a safetensors file",
        ),
        (
            [
                "train",
                "--config=configs/folder.py",
                "--config.adapter.rank=8",
                "--workdir={new}",
            ],
            "say which with --config.init_from=DIR",
        ),
    ],
)
def test_bad_input_on_the_command_line_is_one_sentence(written, tmp_path, command, sentence):
    names = {"base": SHIPPED, "other": written[2], "new": tmp_path / "new"}
    name, *arguments = (text.format(**names) for text in command)
    done = run_in_process(name, *arguments, ok=False)
    assert done.returncode == 2 and sentence.format(**names) in done.stderr, done.stderr
