"""A model exported as diffusers' folder: diffusers and transformers load it and compute the same, and
`vqd convert` reads it back.
"""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import transformers.utils  # noqa: E402

transformers.utils.FLAX_WEIGHTS_NAME = (
    "flax_model.msgpack"  # what diffusers 0.30 misses in transformers 5
)

from diffusers import (
    ConfigMixin,
    ModelMixin,
    Transformer2DModel,
    VQDiffusionPipeline,
    VQDiffusionScheduler,
    VQModel,
)  # noqa: E402
from diffusers.configuration_utils import LegacyConfigMixin  # noqa: E402
from diffusers.models.modeling_utils import LegacyModelMixin  # noqa: E402
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
    LearnedClassifierFreeSamplingEmbeddings,
)  # noqa: E402
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402

from helpers.clip_files import MERGES, VOCABULARY, write_folder  # noqa: E402
from helpers.workdirs import (  # noqa: E402
    FITTING,  # noqa: E402
    items,
    made,
    make_workdir,
    same_arrays,
)
from vqd_jax.core.errors import UserError
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.inference import pipeline
from vqd_jax.models.weights import released

# diffusers 0.30 would recurse endlessly on a Transformer2DModel of this kind.
LegacyModelMixin.from_pretrained = classmethod(ModelMixin.from_pretrained.__func__)
LegacyConfigMixin.from_config = classmethod(ConfigMixin.from_config.__func__)

PROMPTS = ["ab cd", "", "xyz " * 90, "a red apple, 2 dogs?"]
MODELS = {
    "learned null": {
        "vqvae.multipliers": (1, 2),
        "vqvae.attention_resolutions": (8,),
        "vqvae.middle_attention": True,
    },
    "empty null": {
        "condition.null": "empty",
        "vqvae.multipliers": (1, 1, 2),
        "vqvae.attention_resolutions": (16, 8),
        "vqvae.residual_blocks": 2,
        "clip_text.width": 128,
        "clip_text.heads": 2,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """(the workdir, the model in it, the folder)."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = ClipTokenizer.load(write_folder(folder / "vocabulary", VOCABULARY, MERGES))
    workdir = make_workdir(folder / "run", FITTING | MODELS[request.param], tokenizer)
    made("export", f"--workdir={workdir}", "--format=diffusers")
    return workdir, pipeline.load(workdir), folder / "run-diffusers"


def part(folder, name, kind):
    """Loads a part with its library, which must report no missing or unexpected keys."""
    loaded, info = kind.from_pretrained(folder / name, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        info
    )
    return loaded.eval()


def test_the_network_and_the_text_agree(exported):
    _, model, folder = exported
    network, tower = (
        part(folder, "transformer", Transformer2DModel),
        part(folder, "text_encoder", CLIPTextModel),
    )
    ids = model.tokenizer(PROMPTS)
    with torch.no_grad():
        states = tower(torch.from_numpy(ids).long()).last_hidden_state
    states = states / states.norm(dim=-1, keepdim=True)
    keep = np.zeros(len(PROMPTS), bool)
    ours, _ = model.stage.condition(model.weights, jnp.asarray(ids), jnp.asarray(keep))
    np.testing.assert_allclose(ours, states.numpy(), atol=1e-5)
    z = np.random.default_rng(0).integers(0, 21, (len(PROMPTS), np.prod(model.stage.denoiser.grid)))
    for t in (1, 4, 10):
        logits = model.stage.predict(
            model.weights, *map(jnp.asarray, (z, np.full(len(PROMPTS), t), ids, keep))
        )
        logits = np.asarray(logits)
        with torch.no_grad():
            theirs = network(
                torch.from_numpy(z), encoder_hidden_states=states, timestep=torch.tensor(t - 1)
            ).sample
        normalised = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        np.testing.assert_allclose(normalised, theirs.swapaxes(1, 2).numpy(), atol=1e-4)


def test_the_codec_agrees(exported):
    _, model, folder = exported
    codec, rng = part(folder, "vqvae", VQModel), np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    side = model.stage.denoiser.grid[0]
    tokens = rng.integers(0, 20, (2, side * side))
    with torch.no_grad():
        latents = codec.encode(
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        ).latents
        index = codec.quantize(latents)[2][2]
        vectors = codec.quantize.get_codebook_entry(torch.from_numpy(tokens), (2, side, side, 6))
        painted = codec.decode(vectors, force_not_quantize=True).sample.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(model.encode(images), index.reshape(2, -1).numpy())
    np.testing.assert_allclose(
        np.asarray(model.codec.paint(model.codec_weights, jnp.asarray(tokens))) / 2,
        painted / 2,
        atol=1e-5,
    )


def test_the_rest_agrees(exported):
    _, model, folder = exported
    null = part(
        folder,
        "learned_classifier_free_sampling_embeddings",
        LearnedClassifierFreeSamplingEmbeddings,
    )
    assert null.learnable == (model.config.condition.null == "learned")
    if null.learnable:
        np.testing.assert_array_equal(
            null.embeddings.detach().numpy(), model.weights["conditioner"]["null"]
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        PROMPTS[:2] + PROMPTS[3:], padding="max_length", max_length=tokenizer.model_max_length
    ).input_ids
    np.testing.assert_array_equal(ids, model.tokenizer(PROMPTS[:2] + PROMPTS[3:]))
    scheduler = VQDiffusionScheduler.from_pretrained(folder / "scheduler")
    intact = np.multiply(model.process.unmasked, model.process.intact)
    np.testing.assert_allclose(
        np.roll(scheduler.log_cumprod_at.exp().numpy(), 1), intact, rtol=1e-5
    )


def test_convert_gives_the_same_arrays(exported, tmp_path):
    workdir, model, folder = exported
    made("convert", folder, f"--workdir={tmp_path / 'again'}")
    for stage in ("vqvae", "diffusion"):
        same_arrays(
            items(workdir, stage)[1]["weights"], items(tmp_path / "again", stage)[1]["weights"]
        )
    assert (
        items(tmp_path / "again", "diffusion")[1]["tokenizer"]
        == items(workdir, "diffusion")[1]["tokenizer"]
    )
    process = pipeline.load(tmp_path / "again").process
    np.testing.assert_allclose(process.unmasked, model.process.unmasked, rtol=1e-9)
    np.testing.assert_allclose(process.intact, model.process.intact, rtol=1e-9)


def test_the_whole_pipeline_reads_prompts_alike(exported):
    _, model, folder = exported
    pipe = VQDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        theirs = pipe._encode_prompt(PROMPTS[:1], 1, True)  # the null, then the prompt
    ids = jnp.asarray(model.tokenizer(PROMPTS[:1] * 2))
    ours, _ = model.stage.condition(model.weights, ids, jnp.array([True, False]))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPTS[:1], num_inference_steps=10, output_type="np").images.shape == (
        1,
        16,
        16,
        3,
    )


@pytest.mark.parametrize(
    "path,damage,sentence",
    [
        (
            "transformer/diffusion_pytorch_model.safetensors",
            lambda p: p.write_bytes(p.read_bytes()[:-1]),
            "or it is damaged",
        ),
        (
            "transformer/config.json",
            lambda p: p.write_text('{"num_attention_heads": 3}'),
            "config.json has no 'sample_size'",
        ),
        (
            "transformer/config.json",
            lambda p: p.write_text("[]"),
            "config.json holds a list, not an object",
        ),
        (
            "vqvae/diffusion_pytorch_model.safetensors",
            lambda p: p.unlink(),
            "there are no weights in",
        ),
        (
            "learned_classifier_free_sampling_embeddings/diffusion_pytorch_model.safetensors",
            lambda p: p.write_bytes((p.parents[1] / "vqvae" / p.name).read_bytes()),
            "has no 'embeddings'",
        ),
    ],
    ids=["truncated", "key", "kind", "weights", "embeddings"],
)
def test_a_damaged_folder_is_one_sentence(exported, path, damage, sentence, tmp_path):
    _, model, folder = exported
    if "learned" in path and model.config.condition.null != "learned":
        pytest.skip("it has no embeddings")
    shutil.copytree(folder, tmp_path / "x")
    damage(tmp_path / "x" / path)
    with pytest.raises(UserError, match=sentence):
        released.read(tmp_path / "x")
