"""A diffusers folder with random weights, written by diffusers, is converted and compared with
VQDiffusionPipeline.
"""

import argparse
import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import transformers.utils  # noqa: E402

transformers.utils.FLAX_WEIGHTS_NAME = (
    "flax_model.msgpack"  # what diffusers 0.30 misses in transformers 5
)

from diffusers import Transformer2DModel, VQDiffusionPipeline, VQDiffusionScheduler, VQModel  # noqa: E402
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
    LearnedClassifierFreeSamplingEmbeddings,
)  # noqa: E402
from diffusers.schedulers import scheduling_vq_diffusion  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from helpers.clip_files import MERGES, VOCABULARY, write_folder  # noqa: E402
from helpers.released import Gumbel  # noqa: E402
from vqd_jax.inference import pipeline
from vqd_jax.samplers.guidance import GuidanceConfig, top_p_filter
from vqd_jax.stages import sampling

T, CODES, SIDE, E = 10, 20, 8, 16
PROMPTS = ["ab cd", "xyz"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(a folder with the converted workdir "run", the parts from which it was made)."""
    folder = tmp_path_factory.mktemp("diffusers")
    torch.manual_seed(0)
    network = Transformer2DModel(
        num_attention_heads=3,
        attention_head_dim=4,
        num_layers=2,
        cross_attention_dim=E,
        attention_bias=True,
        sample_size=SIDE,
        num_vector_embeds=CODES + 1,
        activation_fn="geglu-approximate",
        num_embeds_ada_norm=T,
        norm_type="ada_norm",
    )
    codec = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2,
        latent_channels=16,
        num_vq_embeddings=CODES,
        vq_embed_dim=6,
        norm_num_groups=32,
        sample_size=SIDE,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=E,
            intermediate_size=4 * E,
            num_hidden_layers=2,
            bos_token_id=49406,
            num_attention_heads=1,
            eos_token_id=49407,
            pad_token_id=0,
        )
    )
    null = LearnedClassifierFreeSamplingEmbeddings(learnable=True, hidden_size=E, length=77)
    for module in (network, codec, text, null):
        with torch.no_grad():
            for p in module.parameters():
                p.add_((0.02 if module is codec else 0.2) * torch.randn_like(p))
    parts = dict(
        transformer=network.eval(),
        vqvae=codec.eval(),
        text_encoder=text.eval(),
        scheduler=VQDiffusionScheduler(num_vec_classes=CODES + 1, num_train_timesteps=T),
        learned_classifier_free_sampling_embeddings=null,
    )
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "VQDiffusionPipeline"}')
    write_folder(folder / "tokenizer", VOCABULARY, MERGES)
    done = subprocess.run(
        [sys.executable, "-m", "vqd_jax", "convert", str(folder), f"--workdir={folder / 'run'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return folder, parts


@pytest.fixture(scope="module")
def both(converted):
    """(our model, their pipeline) with the same weights."""
    folder, parts = converted
    model = pipeline.load(folder / "run")
    pipe = VQDiffusionPipeline.__new__(VQDiffusionPipeline)
    super(VQDiffusionPipeline, pipe).__init__()
    for name, part in (parts | {"tokenizer": Tokenizer(model.tokenizer)}).items():
        object.__setattr__(pipe, name, part)
        pipe.register_to_config(**{name: (None, None)})
    pipe.set_progress_bar_config(disable=True)
    return model, pipe


@dataclasses.dataclass
class Tokenizer:
    """Our ids where transformers' own tokenizer gives them."""

    ours: object
    model_max_length: int = 77

    def __call__(self, texts, **options):
        return argparse.Namespace(input_ids=torch.from_numpy(self.ours(texts)).long())


def test_the_network_and_the_text_agree(both):
    model, pipe = both
    conditions, _ = model.conditions(PROMPTS, "", GuidanceConfig(guidance=2.5))
    ids, drop = jnp.asarray(conditions.ids[0]), jnp.asarray(conditions.drop[0])
    z = np.random.default_rng(0).integers(0, CODES + 1, (2, SIDE * SIDE))
    for t in (1, 4, T):
        logits = model.stage.predict(model.weights, jnp.asarray(z), jnp.full(2, t), ids, drop)
        with torch.no_grad():
            states = pipe._encode_prompt(PROMPTS, 1, False)
            theirs = pipe.transformer(
                torch.from_numpy(z), encoder_hidden_states=states, timestep=torch.tensor(t - 1)
            ).sample
        ours = logits - np.logaddexp.reduce(np.asarray(logits), axis=-1, keepdims=True)
        np.testing.assert_allclose(ours, theirs.swapaxes(1, 2).numpy(), atol=1e-4)
    text, _ = model.stage.condition(model.weights, ids, drop)
    np.testing.assert_allclose(text, states.numpy(), atol=1e-5)


def test_exported_again_the_files_are_the_same(converted, tmp_path):
    folder, parts = converted
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vqd_jax",
            "export",
            f"--workdir={folder / 'run'}",
            "--format=diffusers",
            f"--out={tmp_path / 'again'}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    for name, part in parts.items():
        (file,) = [*(tmp_path / "again" / name).glob("*.safetensors")] or [None]
        if file is None:
            again = VQDiffusionScheduler.from_pretrained(tmp_path / "again" / name).config
            assert name == "scheduler" and again == {key: part.config[key] for key in again}
            continue
        written, theirs = (
            {key.removeprefix("text_model."): x for key, x in load_file(file).items()},
            part.state_dict(),
        )
        assert written.keys() == {key.removeprefix("text_model.") for key in theirs}
        for key, tensor in theirs.items():
            np.testing.assert_array_equal(written[key.removeprefix("text_model.")], tensor.numpy())


def test_the_codec_agrees(both):
    model, pipe = both
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        latents = pipe.vqvae.encode(
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        ).latents
        _, _, (_, _, index) = pipe.vqvae.quantize(latents)
    np.testing.assert_array_equal(model.encode(images), index.reshape(2, -1).numpy())


def test_truncation_agrees(both):
    _, pipe = both
    log_p = torch.randn(3, CODES, 50, dtype=torch.float64).mul(3).log_softmax(1)
    theirs = pipe.truncate(log_p.clone(), 0.86).swapaxes(1, 2).numpy()
    ours = np.asarray(top_p_filter(jnp.asarray(log_p.swapaxes(1, 2).float().numpy()), 0.86))
    np.testing.assert_array_equal(ours > -1e3, np.isfinite(theirs))


def test_the_posterior_agrees(both):
    model, pipe = both
    rng = np.random.default_rng(3)
    logits, z = (
        rng.normal(size=(2, SIDE * SIDE, CODES)).astype(np.float32) * 2,
        rng.integers(0, CODES + 1, (2, SIDE * SIDE)),
    )
    log_p = torch.from_numpy(logits).log_softmax(-1).swapaxes(1, 2)
    for t in range(2, T + 1):
        theirs = (
            pipe.scheduler.q_posterior(log_p, torch.from_numpy(z), torch.tensor(t - 1))
            .swapaxes(1, 2)
            .exp()
            .numpy()
        )
        ours = np.exp(
            model.process.reverse(
                jnp.asarray(log_p.swapaxes(1, 2).numpy()),
                jnp.asarray(z),
                jnp.full(2, t - 1),
                jnp.full(2, t),
            )
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_generation_with_the_same_noise_has_the_same_tokens_and_pixels(both, monkeypatch):
    model, pipe = both
    noise = np.random.default_rng(2).gumbel(size=(T, 2, SIDE * SIDE, CODES + 1)).astype(np.float32)
    left = iter(torch.from_numpy(noise).swapaxes(2, 3))
    monkeypatch.setattr(
        scheduling_vq_diffusion,
        "gumbel_noised",
        lambda logits, generator: logits + next(left)[:, : logits.shape[1]],
    )
    seen = []
    pictures = pipe(
        PROMPTS,
        num_inference_steps=T,
        guidance_scale=2.5,
        truncation_rate=0.86,
        output_type="np",
        callback=lambda step, t, latents: seen.append(latents.numpy()),
    ).images
    conditions, scales = model.conditions(PROMPTS, "", GuidanceConfig(guidance=2.5))
    tokens, states = sampling.sample(
        model.stage,
        model.weights,
        conditions,
        scales,
        seed=0,
        sampler=Gumbel(noise),
        trace=True,
        guidance_config=GuidanceConfig(guidance=2.5, top_p=0.86),
    )
    np.testing.assert_array_equal(states, np.stack(seen))
    ours = np.clip(
        np.asarray(model.codec.paint(model.codec_weights, jnp.asarray(tokens))) / 2 + 0.5, 0, 1
    )
    np.testing.assert_allclose(ours, pictures, atol=1e-5)
