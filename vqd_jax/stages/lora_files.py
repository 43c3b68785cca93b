"""Adapter files: a folder in the layout of Hugging Face's PEFT, with the module names of diffusers.

`peft.PeftModel.from_pretrained(transformer, folder)` puts the adapter on the transformer of the
model that `vqd export --format=diffusers` wrote. Its separate layers for queries, keys and values
are one kernel here: their lora_A are all equal to `down`, and their lora_B are slices of `up`.

    blockN/…/kernel/down (in, rank) = lora_A.weight (rank, in)
    blockN/…/kernel/up (rank, out)  = lora_B.weight (out, rank)
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.scipy.linalg import block_diag

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.core.text_files import read_json, shown
from vqd_jax.models.weights.files import read_tree, safetensors_header, write_safetensors
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.models.weights.rules import check_finite
from vqd_jax.runtime.checkpoint import fit
from vqd_jax.stages.lora import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "vqd_jax.base"  # the entry of the safetensors header with the fingerprint of the base model
SINGLE = "vqd_jax.adapter"  # the entry that describes the adapter in a file of an earlier version
LAYERS = {  # of a block: the kernel here, the layers of diffusers
    "self_attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "self_attention/out": ("attn1.to_out.0",),
    "cross_attention/q": ("attn2.to_q",),
    "cross_attention/kv": ("attn2.to_k", "attn2.to_v"),
    "cross_attention/out": ("attn2.to_out.0",),
    "mlp_in": ("ff.net.0.proj",),
    "mlp_out": ("ff.net.2",),
}
# PEFT's options that do not change what an adapter does to the layers that are in its file
NEUTRAL = """auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out
    inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
    megatron_core peft_type peft_version qalora_group_size r revision runtime_config target_modules
    task_type use_rslora""".split()
OFF = (None, False, "none", [], {})  # values of the others that switch them off
INITIAL = (True, False, "gaussian", "orthogonal", "eva")  # others change the base model as well
LARGEST = 2**31  # for r and lora_alpha

KernelPath = tuple[str, ...]
Read = tuple[Adapter, dict[str, Any]]  # an adapter and its matrices, as `Adapter.merged` takes them


def fingerprint(denoiser: Params) -> str:
    """SHA-256 of the weights in half precision, with -0 as 0: exported weights have the fingerprint
    of the weights they were exported from.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(denoiser, sep="/").items()):
        digest.update(f"{path} {np.shape(leaf)} ".encode())
        digest.update((np.asarray(leaf).astype(np.float16) + np.float16(0)).tobytes())
    return digest.hexdigest()


def write(folder: Path, adapter: Adapter, weights: Params) -> None:
    """Writes the adapter in the weights of a run to a folder, with the fingerprint of its base
    model. Older files are replaced atomically.
    """
    if "adapter" not in weights:
        raise UserError(
            f"{folder.parent} holds a model that was trained without an adapter: choose another "
            "workdir"
        )
    kernels, matrices = flatten_dict(weights["denoiser"]), flatten_dict(weights["adapter"])
    arrays, targets = {}, set()
    for path in sorted({path[:-1] for path in matrices}):
        layers = _layers(path)
        down, up = (np.asarray(matrices[*path, name], np.float32) for name in ("down", "up"))
        for layer, columns in zip(layers, np.split(up, len(layers), axis=-1)):
            arrays[_key(layer, "A")] = _to_torch(down, kernels[path].shape[:-1])
            arrays[_key(layer, "B")] = _to_torch(columns, [1] * (kernels[path].ndim - 2) + [-1])
            targets.add(layer.split(".", 2)[-1])
    header = {"format": "pt", BASE: fingerprint(weights["denoiser"])}
    with atomic_write(folder / WEIGHTS) as part:
        write_safetensors(part, arrays, header)
    with atomic_write(folder / CONFIG) as part:  # last: with it, the folder is one of PEFT
        part.write_text(json.dumps(_config(adapter, targets), indent=2) + "\n", "utf-8")


def apply(name: str | os.PathLike, denoiser: Params, *, scale: float = 1.0) -> dict[str, Any]:
    """The denoiser's parameters with `scale` times an adapter.

    Args:
      name: a folder in PEFT's layout, or the name of a repository on the Hugging Face hub with one,
        or the single file that earlier versions wrote.

    UserError if there is none, and if it is damaged, has options that are not supported, or does
    not fit the denoiser: other layers, other sizes or, where the files say it, another base model.
    """
    path = local_folder(os.fspath(name), (CONFIG, WEIGHTS))
    if path.name == WEIGHTS:
        path = path.parent
    adapter, matrices = (_read_folder if path.is_dir() else _read_single)(path, denoiser)
    return adapter.merged(denoiser, matrices, scale)


def _layers(path: KernelPath) -> list[str]:
    """The names in diffusers of the layers that are the kernel at this path; empty for a kernel
    that is not adapted.
    """
    block, kernel = path[0].removeprefix("block"), "/".join(path[1:-1])
    names = LAYERS.get(kernel, ()) if path[-1] == "kernel" else ()
    return [f"transformer_blocks.{block}.{name}" for name in names]


def _key(layer: str, matrix: str) -> str:
    return f"base_model.model.{layer}.lora_{matrix}.weight"


def _to_torch(matrix: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """(rows, columns), with the rows in this shape, as PyTorch stores it: (columns, rows), and for
    convolutions (columns, rows, h, w).
    """
    array = matrix.reshape(*rows, matrix.shape[-1])
    return array.transpose(-1, -2, *range(array.ndim - 2))


def _from_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `_to_torch`."""
    array = np.asarray(array, np.float32).transpose(*range(2, array.ndim), 1, 0)
    return array.reshape(-1, array.shape[-1])


def _config(adapter: Adapter, targets: set[str]) -> dict[str, Any]:
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": adapter.alpha if adapter.alpha % 1 else int(adapter.alpha),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": sorted(targets),
        "task_type": None,
    }


def _read_folder(folder: Path, denoiser: Params) -> Read:
    """An adapter in PEFT's layout."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no adapter, since it has no {name}: training with "
                "--config.adapter.rank=8 writes the folder adapter into its workdir"
            )
    adapter, path = _read_config(folder / CONFIG), folder / WEIGHTS
    base = safetensors_header(path)[0].get(BASE)
    if base is not None:
        _check_base(folder, base, denoiser)
    arrays = read_tree(path)
    check_finite(arrays, str(path))
    kernels = {key: np.shape(x) for key, x in flatten_dict(denoiser).items() if _layers(key)}
    _check_arrays(path, arrays, adapter.rank, kernels)
    found, matrices = {key: _from_torch(array) for key, array in arrays.items()}, {}
    for key, (*rows, columns) in kernels.items():
        layers = _layers(key)
        empty = np.zeros((np.prod(rows), 0), np.float32), np.zeros((0, columns // len(layers)))
        downs, ups = (
            [found.get(_key(layer, matrix), none) for layer in layers]
            for matrix, none in zip("AB", empty)
        )
        if any(down.size for down in downs):
            matrices[*key, "down"], matrices[*key, "up"] = _joined(downs, ups)
    return adapter, unflatten_dict(matrices)


def _joined(
    downs: Sequence[np.ndarray], ups: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(down, up) of a kernel from those of its slices, which may share down."""
    if all(np.array_equal(down, downs[0]) for down in downs):
        return downs[0], np.concatenate(ups, -1)
    return np.concatenate(downs, -1), np.asarray(block_diag(*ups))


def _check_arrays(
    path: Path,
    arrays: dict[str, np.ndarray],
    rank: int,
    kernels: dict[KernelPath, tuple[int, ...]],
) -> None:
    """UserError unless the arrays are pairs of matrices of this rank for some of the kernels."""
    expected = {}
    for kernel, (*size, rows, columns) in kernels.items():
        for layer in (layers := _layers(kernel)):
            down, up = _key(layer, "A"), _key(layer, "B")
            expected[down] = (rank, rows, *size)
            expected[up] = (columns // len(layers), rank, *[1] * len(size))
            if (down in arrays) != (up in arrays):
                lacking = down if up in arrays else up
                raise UserError(f"{path} has no {lacking!r}, and the other matrix of that layer")
    if not arrays:
        raise UserError(f"{path} has no arrays")
    for key, array in arrays.items():
        if key not in expected:
            raise UserError(
                f"{path} has {shown(key)}, and this model takes none of that name; it takes such "
                f"as {next(iter(expected))!r}"
            )
        if array.shape != expected[key]:
            raise UserError(
                f"{path}: {key!r} has the shape {array.shape}, and this model with r={rank} takes "
                f"{expected[key]}"
            )


def _read_config(path: Path) -> Adapter:
    """The adapter that PEFT's config describes; of its options, rank-stabilised scaling (rslora) is
    supported.
    """
    config = read_json(path)
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(f"{path} describes a PEFT adapter of the type {shown(kind)}, not 'LORA'")
    others = [key for key, value in config.items() if key not in NEUTRAL and value not in OFF]
    if config.get("init_lora_weights", True) not in INITIAL:
        others.append("init_lora_weights")
    if others:
        values = ", ".join(f"{shown(key)}: {shown(config[key])}" for key in others[:4])
        raise UserError(f"{path} has options of PEFT that are not supported: {values}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (
        isinstance(rank, int)
        and isinstance(alpha, int | float)
        and 0 < rank < LARGEST
        and 0 < alpha < LARGEST
    ):
        raise UserError(
            f"{path}: r and lora_alpha must be positive numbers, got {shown(rank)} and "
            f"{shown(alpha)}"
        )
    scale = rank**0.5 if config.get("use_rslora") else 1.0
    return Adapter(rank=rank, alpha=alpha * scale)


def _read_single(path: Path, denoiser: Params) -> Read:
    """An adapter in the single file that earlier versions wrote."""
    if not path.is_file():
        raise UserError(f"there is no adapter file {path}")
    about = safetensors_header(path)[0].get(SINGLE, "")
    try:
        fields = json.loads(about)
        adapter = Adapter(**{name: fields[name] for name in ("rank", "alpha", "kernels")})
        base, arrays = fields["base"], read_tree(path)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no adapter that vqd_jax.main wrote") from error
    _check_base(path, base, denoiser)
    expected = flatten_dict(jax.eval_shape(adapter.init, root_key(0), denoiser), sep="/")
    return adapter, unflatten_dict(fit(arrays, expected, f"the adapter {path}"), sep="/")


def _check_base(path: Path, base: str, denoiser: Params) -> None:
    if base != fingerprint(denoiser):
        raise UserError(
            f"the adapter {path} was trained on another model than this one: use it with the "
            "workdir it started from"
        )
