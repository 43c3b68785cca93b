"""Writes the folder that diffusers' VQDiffusionPipeline loads; `released` reads it.

Names come from the inverse of the tables that read them. The layout cannot express all settings:
`unsupported` lists those that must be the released model's.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.shapes import Params
from vqd_jax.diffusion import schedules
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.models.weights import clip, denoiser, vqgan
from vqd_jax.models.weights.files import write_safetensors
from vqd_jax.models.weights.rules import inverse, invert, rename

VERSION = "0.30.3"  # of diffusers, for its keys
REQUIRED = {
    "condition.kind": "text",
    "text.encoder": "clip",
    "denoiser.mlp": "fc",
    "denoiser.mlp_ratio": 4,
    "denoiser.time": "learned",
    "denoiser.head": "linear",
    "codebook.groups": 1,
    "vqvae.resampling": "conv",
    "vqvae.patch_size": 1,
}
PARTS = {
    "transformer": ["diffusers", "Transformer2DModel"],
    "vqvae": ["diffusers", "VQModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "VQDiffusionScheduler"],
    "learned_classifier_free_sampling_embeddings": [
        "diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion",  # since 0.25
        "LearnedClassifierFreeSamplingEmbeddings",
    ],
}
Config = Mapping[str, Any]


def unsupported(config: Config, process: MaskAndReplace, codec_weights: Params) -> list[str]:
    """Reasons why the layout cannot hold this model; `config` has all keys of `config.defaults`."""
    text, network, vqvae = config["clip_text"], config["denoiser"], config["vqvae"]
    values = {key: config[key.partition(".")[0]][key.partition(".")[2]] for key in REQUIRED}
    out = [
        f"{key} is {value!r} and not {REQUIRED[key]!r}"
        for key, value in values.items()
        if value != REQUIRED[key]
    ]
    if tuple(network["positions"]) not in ((), (_side(config),) * 2):
        out.append("denoiser.positions are not those of the grid")
    same = schedules.released(process.T, process.k) if process.T > 1 else None
    if same is None or not all(
        np.allclose(getattr(process, x), getattr(same, x), rtol=1e-5, atol=0)
        for x in ("unmasked", "intact")
    ):
        out.append("process.schedule is not the released one")
    out += [f"its codec has a {name}" for name in ("remap", "projection") if name in codec_weights]
    if vqvae["multipliers"][0] != 1:
        out.append("vqvae.multipliers do not begin with 1")
    if len(_groups(vqvae)) > 1:
        out.append("the norms of its codec have different numbers of groups")
    if text["heads"] != clip.heads(text["width"]):
        out.append(f"clip_text.heads are not {clip.heads(text['width'])}")
    return out


def write(folder: Path, config: Config, codec_weights: Params, weights: Params) -> None:
    """Writes everything but the tokenizer's files; the weights are float32, and `unsupported` is
    empty.
    """
    network, vqvae, T = config["denoiser"], config["vqvae"], config["process"]["T"]
    side = _side(config)
    encoder = weights["conditioner"]["encoder"]
    null = weights["conditioner"].get("null", np.zeros(0, np.float32))
    length, width = encoder["position_embedding"].shape
    attention = [
        config["data"]["image_size"] // 2**i in vqvae["attention_resolutions"]
        for i in range(len(vqvae["multipliers"]))
    ]
    (groups,) = _groups(vqvae)
    states = config["codebook"]["codes"] + 1
    _json(
        folder / "model_index.json",
        {"_class_name": "VQDiffusionPipeline", "_diffusers_version": VERSION, **PARTS},
    )
    names = [inverse(*pair) for pair in denoiser.NAMES]
    _part(
        folder / "transformer",
        rename(invert(weights["denoiser"], denoiser.RULES), names),
        activation_fn="geglu-approximate",
        attention_bias=True,
        attention_head_dim=network["width"] // network["heads"],
        cross_attention_dim=width,
        dropout=network["dropout"],
        norm_type="ada_norm",
        num_attention_heads=network["heads"],
        num_embeds_ada_norm=T,
        num_layers=network["layers"],
        num_vector_embeds=states,
        sample_size=side,
    )
    _part(
        folder / "vqvae",
        vqgan.to_diffusers(invert(codec_weights, vqgan.RULES)),
        block_out_channels=[vqvae["channels"] * m for m in vqvae["multipliers"]],
        layers_per_block=vqvae["residual_blocks"],
        down_block_types=[
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention
        ],
        up_block_types=[
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)
        ],
        latent_channels=vqvae["latent_width"],
        mid_block_add_attention=vqvae["middle_attention"],
        norm_num_groups=groups,
        num_vq_embeddings=states - 1,
        vq_embed_dim=config["codebook"]["width"],
        sample_size=side,
    )
    _part(
        folder / "learned_classifier_free_sampling_embeddings",
        {"embeddings": null},
        learnable=bool(null.size),
        **({"hidden_size": width, "length": length} if null.size else {}),
    )
    _part(
        folder / "scheduler",
        {},
        num_train_timesteps=T,
        num_vec_classes=states,
        alpha_cum_start=0.99999,
        alpha_cum_end=9e-6,
        gamma_cum_start=9e-6,
        gamma_cum_end=0.99999,
    )
    _part(
        folder / "text_encoder",
        invert(encoder, clip.RULES),
        architectures=["CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=len(encoder["token_embedding"]["embedding"]),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=config["clip_text"]["layers"],
        num_attention_heads=config["clip_text"]["heads"],
        max_position_embeddings=length,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _part(folder: Path, arrays: Mapping[str, np.ndarray], **settings: Any) -> None:
    """Writes a folder with a config and, if there are any, weights, under the file names that the
    part's library expects.
    """
    library, kind = PARTS[folder.name]
    folder.mkdir()
    header = {"_class_name": kind, "_diffusers_version": VERSION}
    header = {} if library == "transformers" else header
    _json(folder / ("config.json" if arrays else "scheduler_config.json"), header | settings)
    if arrays:
        name = "model" if library == "transformers" else "diffusion_pytorch_model"
        write_safetensors(folder / f"{name}.safetensors", arrays, {"format": "pt"})


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _side(config: Config) -> int:
    """Side of the token grid."""
    return config["data"]["image_size"] // (
        config["vqvae"]["patch_size"] * 2 ** (len(config["vqvae"]["multipliers"]) - 1)
    )


def _groups(vqvae: Config) -> set[int]:
    """Numbers of groups in the codec's norms."""
    return {math.gcd(32, vqvae["channels"] * m) for m in vqvae["multipliers"]}
