"""Folders of weights as diffusers and transformers write them: in one file or in parts, in full
precision or float16, local or on the Hugging Face hub.
"""

import itertools
from pathlib import Path

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.text_files import read_json, shown
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.hub import ENDS, local_folder, snapshot

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".fp16")
PARTS = ("transformer", "vqvae", "text_encoder", "learned_classifier_free_sampling_embeddings")
# Patterns of what is read of a repository: the small files, then the weights of each of PARTS in
# the first of these forms that it has
SMALL = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    *(f"{part}/config.json" for part in PARTS),
)
FORMS = (
    ("*model.safetensors", "*model.safetensors.index.json", "*model-*-of-*.safetensors"),
    ("*model.bin", "*model.bin.index.json", "*model-*-of-*.bin"),
    ("*model*.fp16*",),
)


def find(name: str) -> Path:
    """The file or folder of that name, or the cached copy of a diffusers repository of the hub,
    with the files that are read.
    """
    path = Path(name).expanduser()
    if path.exists() or path.name.endswith(ENDS):
        return snapshot(path)
    folder, lacking = local_folder(name, SMALL), PARTS
    for form in FORMS if (folder / "model_index.json").is_file() else ():
        lacking = [part for part in lacking if not weights_in(folder / part)]
        if lacking:
            files = [f"{part}/{pattern}" for part in lacking for pattern in form]
            folder = local_folder(name, (*SMALL, *files))
    return folder


def read_part(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays in one of the folders of a model."""
    path = weights_in(folder / name)
    if path is None:
        raise UserError(
            f"there are no weights in {folder / name}: it needs diffusion_pytorch_model or model, "
            "as .safetensors or .bin"
        )
    return read_weights(path)


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder of diffusers or transformers, or the index of its parts;
    full precision before float16, safetensors before pickles. None without any.
    """
    names = (
        name
        for variant, kind, stem in itertools.product(VARIANTS, ("safetensors", "bin"), STEMS)
        for name in (f"{stem}{variant}.{kind}", f"{stem}.{kind}.index{variant}.json")
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays by dotted names in a file of weights, or in the parts that an index lists."""
    if path.suffix != ".json":
        return flatten(read_tree(path))
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} has no weight_map, with the file of each tensor")
    out = {}
    for name in dict.fromkeys(names.values()):
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise UserError(f"{path} lists {shown(name)}, which is not a file in its folder")
        if not (path.parent / name).is_file():
            raise UserError(f"the part {shown(name)} of the weights {path} is missing")
        part = flatten(read_tree(path.parent / name))
        expected = [key for key, file in names.items() if file == name]
        if lacking := [key for key in expected if key not in part]:
            raise UserError(f"{path.parent / name} has no {shown(lacking[0])}, which {path} lists")
        out |= {key: part[key] for key in expected}
    return out
