"""Reads weight files (torch's pickles, TorchScript archives, safetensors) as trees of numpy arrays,
without running code from them.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError, printable
from vqd_jax.core.file_kinds import kind_of_file
from vqd_jax.models.weights.torch_files import ARRAYS, LONGEST, not_read, read_torch

DTYPES = {"F64", "F32", "F16", "BF16", "BOOL", *(f"{x}{n}" for x in "IU" for n in (8, 16, 32, 64))}


def read_tree(path: str | Path) -> dict[str, Any]:
    """The tree in a file; UserError if it is missing, damaged or not a dictionary of tensors."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weight file {path}")
    tree = _safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if isinstance(tree, np.ndarray):
        return {"": tree}
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a dictionary of tensors")
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of a tree of dictionaries by dotted names; drops everything else."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray):
            out[f"{prefix}{key}"] = value
    return out


def strip_prefix(prefix: str, source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries whose keys begin with the prefix, which is removed from the keys."""
    return {
        key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)
    }


def safetensors_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Metadata and array names of a safetensors file; UserError if it is damaged or truncated."""
    from safetensors import safe_open

    with _readable(path), safe_open(path, "numpy") as file:
        return file.metadata() or {}, list(file.keys())


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, with the permissions of any new file; UserError if that is not
    possible.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(
            {name: np.asarray(array, order="C") for name, array in arrays.items()},
            path,
            dict(metadata),
        )
        path.chmod(mode)  # save_file makes a file that only its owner reads
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with _readable(path), safe_open(path, "numpy") as file:
        names = list(file.keys())
        if len(names) > ARRAYS or max(map(len, names), default=0) > LONGEST:
            raise UserError(
                f"{path} has more than {ARRAYS:,} tensors, or a name of more than {LONGEST} "
                "characters"
            )
        for name in names:
            if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                raise UserError(not_read(path, name, dtype))
        return {name: file.get_tensor(name) for name in names}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        if found := kind_of_file(path):
            raise UserError(f"{path} is {found}, and no safetensors file") from error
        why = printable(" ".join(str(error).split()))
        raise UserError(f"{path} is not a safetensors file, or it is damaged ({why})") from error
