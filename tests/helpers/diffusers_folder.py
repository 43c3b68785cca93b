"""A small model as a diffusers folder, without PyTorch, and the other layouts of such folders."""

import json
import os
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

from helpers import torch_pickles
from helpers.clip_files import MERGES, VOCABULARY, write_folder
from helpers.workdirs import FITTING, made, make_workdir
from vqd_jax.data.text.clip import ClipTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_folder(place):
    tokenizer = ClipTokenizer.load(write_folder(place / "vocabulary", VOCABULARY, MERGES))
    made(
        "export",
        f"--workdir={make_workdir(place / 'run', FITTING, tokenizer)}",
        "--format=diffusers",
    )
    return place / "run-diffusers"


def write_weights(path, arrays):
    """A safetensors file, or one of PyTorch."""
    if path.suffix == ".safetensors":
        return save_file(arrays, path)

    def state(tensor):
        return {
            name: tensor(
                torch_pickles.Storage(
                    {"float32": "FloatStorage", "float16": "HalfStorage"}[x.dtype.name], x
                ),
                0,
                x.shape,
                tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides),
            )
            for name, x in arrays.items()
        }

    torch_pickles.save(path, False, state)


def rewrite(folder, *, kind="safetensors", variant="", shards=1):
    """Writes the weights of all parts in another layout."""
    for file in sorted(folder.rglob("*.safetensors")):
        arrays = load_file(file)
        file.unlink()
        if variant:
            arrays = {name: x.astype(np.float16) for name, x in arrays.items()}
        stem = "pytorch_model" if (kind, file.stem) == ("bin", "model") else file.stem
        if shards == 1:
            write_weights(file.with_name(f"{stem}{variant}.{kind}"), arrays)
            continue
        where = {}
        for i in range(shards):
            name = f"{stem}{variant}-{i + 1:05}-of-{shards:05}.{kind}"
            part = {key: arrays[key] for key in list(arrays)[i::shards]}
            write_weights(file.with_name(name), part)
            where |= dict.fromkeys(part, name)
        index = file.with_name(f"{stem}.{kind}.index{variant}.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def cache(folder, hub, name="microsoft/vq-diffusion-ithq"):
    """The folder as the hub's cache holds it: links to blobs in a snapshot that a reference names."""
    repository = hub / f"models--{name.replace('/', '--')}"
    for file in (file for file in folder.rglob("*") if file.is_file()):
        link = repository / "snapshots" / COMMIT / file.relative_to(folder)
        blob = repository / "blobs" / f"{file.parent.name}-{file.name}"
        for path in (link, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository
