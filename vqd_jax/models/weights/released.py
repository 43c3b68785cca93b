"""Reads published weights: official checkpoints, codecs and diffusers folders, recognised by their
content.

A `ReleasedModel` has arrays with the released code's names, and the config keys that follow from
names and shapes; others (heads, grid, settings) come from the YAML of the official checkpoints.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params
from vqd_jax.core.text_files import read_json, read_yaml, shown
from vqd_jax.models.weights import clip, denoiser, vqgan
from vqd_jax.models.weights.files import flatten, read_tree, strip_prefix
from vqd_jax.models.weights.folders import find, read_part
from vqd_jax.models.weights.rules import convert, rename

Arrays = dict[str, np.ndarray]
Settings = dict[str, dict[str, Any]]
KINDS = (
    'an official .pth checkpoint of VQ-Diffusion (with "model"), a codec of taming-transformers '
    '(with "state_dict" or "model"), a diffusers folder (with model_index.json), or a file by vqd '
    "export"
)
# Keys of an official model; two of its tables are read, from which the others follow.
KEYS = (
    r"content_codec\..*|transformer\.(transformer\..*|condition_emb\..*|empty_text_embed|"
    r"Lt_(history|count)|log_(1_min_)?(cumprod_)?[abc]t)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """Arrays by component, empty if the source has none.

    Attributes:
      tables: log alpha and log beta (T + 1,).
      settings: config keys by section.
    """

    name: str
    codec: Arrays
    denoiser: Arrays
    text: Arrays
    null: np.ndarray | None
    tables: tuple[np.ndarray, np.ndarray] | None
    tokenizer: Path | None
    settings: Settings


def read(source: str | Path, config: str | Path | None = None) -> ReleasedModel:
    """Reads a file or folder; `config` is the YAML of an official checkpoint."""
    path = find(str(source))
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(f"the folder {path} has no model_index.json: give {KINDS}")
        return _diffusers(path)
    tree = read_tree(path)
    model = tree.get("model") if isinstance(tree.get("model"), dict) else tree.get("state_dict")
    arrays = flatten(model if isinstance(model, dict) else tree)
    arrays = strip_prefix("first_stage_model.", arrays) or arrays
    if any(key.startswith("transformer.transformer.") for key in arrays):
        ema = flatten(tree["ema"]) if isinstance(tree.get("ema"), dict) else {}
        return _official(path, arrays, ema, config)
    if "encoder.conv_in.weight" in arrays:
        return _codec(path, arrays)
    first = ", ".join(map(repr, list(arrays)[:3])) or "missing"
    raise UserError(f"{path} is not recognised, its first keys are {first}: give {KINDS}")


def _codec(path: Path, arrays: Arrays) -> ReleasedModel:
    # The FFHQ file also has a GPT.
    parts = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quantize")
    codec = {key: value for key, value in arrays.items() if key.split(".")[0] in parts}
    return ReleasedModel(
        name=str(path),
        codec=codec,
        denoiser={},
        text={},
        null=None,
        tables=None,
        tokenizer=None,
        settings={},
    )


def _official(path: Path, model: Arrays, ema: Arrays, config: str | Path | None) -> ReleasedModel:
    trained = strip_prefix("transformer.", model)
    if unknown := sorted(ema.keys() - trained.keys())[:4]:
        raise UserError(
            f'{path}: its "ema" has {", ".join(map(repr, unknown))}, which "model" does not have'
        )
    if unknown := [key for key in model if not re.fullmatch(KEYS, key)][:4]:
        raise UserError(
            f'{path}: its "model" has {", ".join(map(repr, unknown))}, which no released model has'
        )
    codec = strip_prefix("content_codec.enc.", model) | strip_prefix("content_codec.dec.", model)
    codec = codec or strip_prefix("content_codec.", model)
    diffusion = trained | ema
    network = strip_prefix("transformer.", diffusion)
    sizes = denoiser.sizes(network)
    try:
        tables = tuple(diffusion[f"log_cumprod_{x}t"] for x in "ab")
    except KeyError as error:
        raise UserError(f"{path}: the schedule table {error} is missing") from error
    settings = _official_settings(sizes, _yaml(config) if config else {}, config)
    text = strip_prefix("condition_emb.", diffusion)
    known = [*(rule.source for rule in clip.RULES), *clip.DROP]
    is_known = lambda key: any(re.fullmatch(pattern, key) for pattern in known)
    if unknown := [key for key in clip.split_fused(text) if not is_known(key)][:4]:
        raise UserError(
            f'{path}: its "condition_emb" has {", ".join(map(repr, unknown))}, which no CLIP text '
            "tower has"
        )
    # Class models have an unused one.
    null = diffusion.get("empty_text_embed") if sizes["condition"] == "text" else None
    return ReleasedModel(
        name=str(path),
        codec=codec,
        denoiser=network,
        text=text,
        null=null,
        tables=tables,
        tokenizer=None,
        settings=settings,
    )


def _official_settings(
    sizes: dict[str, Any], yaml: dict[str, Any], name: str | Path | None
) -> Settings:
    """Config keys: the sizes, and settings from the YAML, or the values that all released models
    share.
    """
    params = _at(yaml, "model", "params")
    diffusion = _at(params, "diffusion_config", "params")
    network = _at(diffusion, "transformer_config", "params")
    for key, size in (
        ("n_layer", sizes["denoiser"]["layers"]),
        ("n_embd", sizes["denoiser"]["width"]),
        ("mlp_hidden_times", sizes["denoiser"]["mlp_ratio"]),
    ):
        if key in network and network[key] != size:
            raise UserError(
                f"{name} is not the config of these weights: its {key} is "
                f"{shown(network[key])}, theirs {size}"
            )
    rows, classes, learned = sizes["class_rows"], 0, True
    if rows:
        embedding = _at(diffusion, "condition_emb_config", "params")
        classes = _number(embedding, "num_embed", name, 1000 if rows in (1000, 1001) else rows)
        learned = rows > classes
    side = network.get("content_spatial_size", ())
    if isinstance(side, list | tuple) and side:
        side = _number({"content_spatial_size": side[0]}, "content_spatial_size", name)
    else:
        side = 0
    usual = 5e-4 if sizes["condition"] == "text" else 1e-3
    weight = _number(diffusion, "auxiliary_loss_weight", name, usual)
    out = {
        "denoiser": sizes["denoiser"]
        | {"heads": _number(network, "n_head", name, 16), "positions": sizes["positions"]},
        "codebook": {"codes": sizes["codes"]},
        "process": {"T": sizes["T"] or _number(diffusion, "diffusion_step", name, 100)},
        "condition": {
            "kind": sizes["condition"],
            "classes": classes,
            "null": "learned" if learned else "empty",
        },
        "diffusion_loss": {
            "auxiliary": weight,
            "adaptive_auxiliary": bool(diffusion.get("adaptive_auxiliary_loss", True)),
        },
    }
    return out | ({"grid": {"side": side}} if side else {})


def _yaml(path: str | Path) -> dict[str, Any]:
    tree = read_yaml(path)
    if not isinstance(tree, dict) or "model" not in tree:
        raise UserError(
            f"{path} is not the config of a VQ-Diffusion model: it has no section model"
        )
    return tree


def _at(tree: Any, *names: str) -> dict[str, Any]:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _diffusers(folder: Path) -> ReleasedModel:
    network = rename(read_part(folder, "transformer"), denoiser.NAMES)
    config_file = folder / "transformer" / "config.json"
    schedule_file = folder / "scheduler" / "scheduler_config.json"
    config, schedule = read_json(config_file), read_json(schedule_file)
    sizes = denoiser.sizes(network)
    embeddings = folder / "learned_classifier_free_sampling_embeddings"
    learned, null = False, None
    if embeddings.is_dir():
        learned = read_json(embeddings / "config.json").get("learnable", False)
    if learned:
        null = _needed(read_part(folder, embeddings.name), "embeddings", embeddings)
    needed = lambda key: _number(config, key, config_file)
    value = lambda key, usual: _number(schedule, key, schedule_file, usual)
    T = value("num_train_timesteps", sizes["T"])
    if T != (sizes["T"] or T):
        raise UserError(
            f"{schedule_file}: num_train_timesteps is {T}, and the transformer has {sizes['T']} "
            "embeddings of times"
        )
    alpha, mask = (
        np.linspace(value(f"{name}_cum_start", first), value(f"{name}_cum_end", last), T)
        for name, first, last in (("alpha", 0.99999, 0.000009), ("gamma", 0.000009, 0.99999))
    )
    # Numbers that are no probabilities are an error later, when the schedule is built.
    with np.errstate(divide="ignore", invalid="ignore"):
        tables = (
            np.log(np.append(alpha, 1)),
            np.log(np.append((1 - alpha - mask) / sizes["codes"], 0)),
        )
    settings = {
        "denoiser": sizes["denoiser"]
        | {"heads": needed("num_attention_heads"), "positions": sizes["positions"]},
        "codebook": {"codes": sizes["codes"]},
        "process": {"T": T},
        "condition": {"kind": "text", "classes": 0, "null": "learned" if learned else "empty"},
        "grid": {"side": needed("sample_size")},
        "diffusion_loss": {"auxiliary": 5e-4, "adaptive_auxiliary": True},
    }
    return ReleasedModel(
        name=str(folder),
        codec=vqgan.rename_diffusers(read_part(folder, "vqvae")),
        denoiser=network,
        null=null,
        tables=tables,
        text=read_part(folder, "text_encoder"),
        tokenizer=folder / "tokenizer",
        settings=settings,
    )


def _needed(values: Mapping[str, Any], key: str, where: Path) -> Any:
    if key not in values:
        raise UserError(f"{where} has no {key!r}")
    return values[key]


def _number(
    values: Mapping[str, Any], key: str, where: str | Path | None, usual: int | float | None = None
) -> int | float:
    """A setting that must be a positive integer, or any number if `usual`, its default, is a float;
    `where` names the file, for messages.
    """
    value = _needed(values, key, where) if usual is None else values.get(key, usual)
    if isinstance(usual, float):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if math.isfinite(number := float(value)):  # YAML takes 5e-4 for text
                return number
        raise UserError(f"{where}: {key} must be a number, got {shown(value)}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 10**6:
        raise UserError(f"{where}: {key} must be an integer from 1 to 1000000, got {shown(value)}")
    return value


def codec_weights(source: Arrays, target: Params, name: str, *, finite: bool = True) -> Params:
    """Parameters of the codec, shaped as `target`."""
    return convert(source, vqgan.RULES, target, drop=vqgan.DROP, name=name, finite=finite)


def denoiser_weights(source: Arrays, target: Params, name: str, *, finite: bool = True) -> Params:
    """Parameters of the denoiser, shaped as `target`."""
    return convert(source, denoiser.RULES, target, drop=denoiser.DROP, name=name, finite=finite)


def text_weights(source: Arrays, target: Params, name: str, *, finite: bool = True) -> Params:
    """Parameters of the text tower, shaped as `target`."""
    source = clip.split_fused(source)
    return convert(source, clip.RULES, target, drop=clip.DROP, name=name, finite=finite)
