"""The native format: a model as one safetensors file, which `vqd export` writes and `vqd convert`
turns into a workdir again.

Arrays are named as in the checkpoints' trees, such as vqvae/codes and
diffusion/denoiser/head/kernel, and those of a plan plan/ORDER. The metadata are "format" and, as
JSON, "STAGE.step", "STAGE.config" and, except for the codec, "STAGE.tokenizer" of each stage.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.files import read_tree, safetensors_header, write_safetensors

FORMAT = "vqd_jax"
_TOKENS = ("step", "config", "tokenizer")
# Metadata of each stage
ITEMS = {"vqvae": ("step", "config"), "diffusion": _TOKENS, "autoregressive": _TOKENS}
Stages = dict[str, dict[str, Any]]


def write(path: Path, stages: Stages, plan: Mapping[str, np.ndarray]) -> None:
    """Writes `stages`, which have "weights" and the ITEMS of the codec and of the models over its
    tokens, and the workdir's plan.
    """
    arrays = flatten_dict(
        {stage: items["weights"] for stage, items in stages.items()} | {"plan": plan}, sep="/"
    )
    text = {
        f"{stage}.{name}": items[name] if name == "tokenizer" else json.dumps(items[name])
        for stage, items in stages.items()
        for name in ITEMS[stage]
    }
    write_safetensors(path, arrays, {"format": FORMAT} | text)


def is_exported(path: Path) -> bool:
    """Whether a file is in this format, complete or not."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    metadata, names = safetensors_header(path)
    return metadata.get("format") == FORMAT or any(
        name.startswith(tuple(f"{stage}/" for stage in ITEMS)) for name in names
    )


def read(path: Path) -> tuple[Stages, dict[str, np.ndarray]]:
    """Returns the arguments of `write`; UserError if the file is damaged or in another format."""
    metadata, names = safetensors_header(path)
    tree = unflatten_dict(read_tree(path), sep="/")
    if unknown := sorted(tree.keys() - ITEMS.keys() - {"plan"}):
        raise UserError(f"{path} has {unknown[0]!r}, which vqd export does not write")
    present = [
        stage
        for stage in ITEMS
        if stage == "vqvae" or any(name.startswith(stage) for name in [*metadata, *names])
    ]
    stages = {
        stage: {name: _value(path, metadata, f"{stage}.{name}") for name in ITEMS[stage]}
        | {"weights": tree.get(stage, {})}
        for stage in present
    }
    return stages, tree.get("plan", {})


def _value(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    kind = {"step": int, "config": dict, "tokenizer": dict}[key.partition(".")[2]]
    if key not in metadata:
        raise UserError(f"{path} has no {key!r} in its metadata: export it again")
    try:
        value = json.loads(metadata[key])
    except ValueError as error:
        raise UserError(f"{path}: {key!r} in its metadata is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise UserError(
            f"{path}: {key!r} in its metadata must be of type {kind.__name__}, got "
            f"{type(value).__name__}"
        )
    return metadata[key] if key.endswith("tokenizer") else value
