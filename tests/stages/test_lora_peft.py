"""Adapter files and PEFT: each merges what the other wrote into the same weights."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("diffusers")

import transformers.utils  # noqa: E402

transformers.utils.FLAX_WEIGHTS_NAME = (
    "flax_model.msgpack"  # what diffusers 0.30 misses in transformers 5
)

import jax  # noqa: E402
from diffusers import Transformer2DModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from helpers.adapted_stage import drawn, moved, stage_of  # noqa: E402
from helpers.clip_files import MERGES, VOCABULARY, write_folder  # noqa: E402
from helpers.workdirs import FITTING, made, make_workdir  # noqa: E402
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.inference import pipeline
from vqd_jax.models.weights.denoiser import NAMES, RULES
from vqd_jax.models.weights.rules import inverse, invert, rename
from vqd_jax.stages import lora_files
from vqd_jax.stages.lora import Adapter


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(denoiser, the transformer of the folder that is exported from it, as a function)."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = ClipTokenizer.load(write_folder(folder / "vocabulary", VOCABULARY, MERGES))
    workdir = make_workdir(folder / "run", FITTING, tokenizer)
    made("export", f"--workdir={workdir}", "--format=diffusers")
    part = folder / "run-diffusers" / "transformer"
    config = json.loads((part / "config.json").read_text())

    def transformer():
        model = Transformer2DModel(**{k: v for k, v in config.items() if k[0] != "_"})
        model.load_state_dict(load_file(part / "diffusion_pytorch_model.safetensors"))
        return model

    return jax.device_get(pipeline.load(workdir).weights["denoiser"]), transformer


def with_random_matrices(adapter, denoiser):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(adapter.init, jax.random.key(0), denoiser)
    draw = lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32)
    return {"denoiser": denoiser, "adapter": jax.tree.map(draw, shapes)}


def check_equal(module, denoiser):
    """The module's weights are those of the denoiser, to 1e-6 of the largest."""
    want = rename(invert(jax.device_get(denoiser), RULES), [inverse(*pair) for pair in NAMES])
    got = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    assert got.keys() == want.keys()
    for name, x in got.items():
        np.testing.assert_allclose(x, want[name], rtol=0, atol=1e-6 * max(1, np.abs(x).max()))


@pytest.mark.parametrize("kernels", ["attention", "all"])
def test_peft_merges_our_adapter_into_the_exported_transformer(exported, kernels, tmp_path):
    denoiser, transformer = exported
    adapter = Adapter(rank=3, alpha=5.0, kernels=kernels)
    lora_files.write(tmp_path, adapter, with_random_matrices(adapter, denoiser))
    merged = lora_files.apply(tmp_path, denoiser)
    model = peft.PeftModel.from_pretrained(transformer(), tmp_path)
    with pytest.raises(AssertionError):
        check_equal(transformer(), merged)
    check_equal(model.merge_and_unload(), merged)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]},
        {"target_modules": ["attn1.to_k", "attn2.to_v"], "use_rslora": True},
        {"target_modules": r".*\.1\.attn1\.to_.", "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_we_merge_what_peft_writes(exported, options, tmp_path):
    denoiser, transformer = exported
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options)
    model = peft.get_peft_model(transformer(), config)
    model.save_pretrained(tmp_path)
    check_equal(model.merge_and_unload(), lora_files.apply(tmp_path, denoiser))


def test_matrices_of_convolutions_are_those_of_peft(tmp_path):
    stage = stage_of("none")
    params = jax.device_get(moved(drawn(stage)))
    lora_files.write(tmp_path, stage.adapter, params)
    block = lambda denoiser: denoiser["block0"]["mlp_in"]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kernel = torch.tensor(np.ascontiguousarray(conv_weight(params["denoiser"])))
            layer = torch.nn.Conv2d(*reversed(kernel.shape[:2]), 3, padding=1)
            layer.weight = torch.nn.Parameter(kernel)
            blocks = {"net": torch.nn.ModuleList([torch.nn.ModuleDict({"proj": layer})])}
            block = torch.nn.ModuleDict({"ff": torch.nn.ModuleDict(blocks)})
            self.transformer_blocks = torch.nn.ModuleList([block])

    conv_weight = lambda denoiser: np.asarray(block(denoiser)["kernel"]).transpose(3, 2, 0, 1)
    model = peft.PeftModel.from_pretrained(Model(), tmp_path).merge_and_unload()
    merged = conv_weight(lora_files.apply(tmp_path, params["denoiser"]))
    got = model.transformer_blocks[0]["ff"]["net"][0]["proj"].weight.detach().numpy()
    np.testing.assert_allclose(got, merged, rtol=0, atol=1e-6 * np.abs(merged).max())
    assert np.abs(merged - conv_weight(params["denoiser"])).max() > 0.1
