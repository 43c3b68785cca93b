"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): kernels become W + (alpha / rank) down up,
with W frozen.

These are pure functions on trees of parameters. The library for this, qwix, patches
jax.lax.dot_general and does not find our linear layers.
"""

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.models.weights.files import read_tree, safetensors_header, write_safetensors
from vqd_jax.runtime.checkpoint import fit

HEADER = "vqd_jax.adapter"  # the entry of the safetensors header that describes the adapter
KERNELS = {
    "attention": ("self_attention", "cross_attention"),
    "all": ("self_attention", "cross_attention", "mlp_in", "mlp_out"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Attributes:
    rank: columns of down and rows of up; 0 is no adapter.
    alpha: the product of down and up is scaled by alpha / rank.
    kernels: the adapted ones: "attention", or "all" for attention and MLP.
    """

    rank: int = 0
    alpha: float = 16.0
    kernels: str = "attention"

    def __post_init__(self):
        if self.kernels not in KERNELS:
            raise UserError(f"adapter.kernels must be {' or '.join(KERNELS)}, got {self.kernels!r}")
        if self.rank < 0 or not 0 < self.alpha < math.inf:
            raise UserError(
                f"adapter.rank must be 0 or more and adapter.alpha positive, got {self.rank} and "
                f"{self.alpha:g}"
            )

    def init(self, key: PRNGKey, denoiser: Params) -> dict[str, Any]:
        """{"down": (in, rank), "up": (rank, out)} at the path of each adapted kernel. up is 0, so
        the model is unchanged at first.

        The kernel of a convolution (3, 3, in, out) counts as a matrix with 9 in rows.
        """
        flat, out = flatten_dict(denoiser), {}
        paths = sorted(
            path for path in flat if path[-1] == "kernel" and {*path} & {*KERNELS[self.kernels]}
        )
        for kernel_key, path in zip(jax.random.split(key, len(paths)), paths):
            *rows, columns = flat[path].shape
            down = jax.random.normal(kernel_key, (math.prod(rows), self.rank))
            down *= math.prod(rows) ** -0.5
            out[path] = {"down": down, "up": jnp.zeros((self.rank, columns))}
        return unflatten_dict(out)

    def merged(self, denoiser: Params, adapter: Params, scale: float = 1.0) -> dict[str, Any]:
        """The denoiser's parameters with `scale` times the adapter merged into its kernels."""
        flat, matrices = flatten_dict(denoiser), flatten_dict(adapter)
        for path in {path[:-1] for path in matrices}:
            down, up = matrices[*path, "down"], matrices[*path, "up"]
            change = jnp.matmul(down, up, precision="highest").reshape(flat[path].shape)
            flat[path] = flat[path] + scale * self.alpha / self.rank * change
        return unflatten_dict(flat)


def fingerprint(denoiser: Params) -> str:
    """SHA-256 of the weights in half precision, with -0 as 0: exported weights have the fingerprint
    of the weights they were exported from.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(denoiser, sep="/").items()):
        digest.update(f"{path} {np.shape(leaf)} ".encode())
        digest.update((np.asarray(leaf).astype(np.float16) + np.float16(0)).tobytes())
    return digest.hexdigest()


def write(path: Path, adapter: Adapter, weights: Params) -> None:
    """Writes the adapter in the weights of a run as a safetensors file, with the fingerprint of its
    base model. An older file is replaced atomically.
    """
    if "adapter" not in weights:
        raise UserError(
            f"{path.parent} holds a model that was trained without an adapter: choose another "
            "workdir"
        )
    about = json.dumps(dataclasses.asdict(adapter) | {"base": fingerprint(weights["denoiser"])})
    arrays = {
        name: np.asarray(x, np.float32)
        for name, x in flatten_dict(weights["adapter"], sep="/").items()
    }
    with atomic_write(path) as temporary:
        write_safetensors(temporary, arrays, {HEADER: about})


def apply_file(path: str | os.PathLike, denoiser: Params, *, scale: float = 1.0) -> dict[str, Any]:
    """The denoiser's parameters with `scale` times the adapter in a file.

    UserError if the file is missing or damaged, or if it was trained on another denoiser.
    """
    adapter, base, arrays = _read(Path(path))
    if base != fingerprint(denoiser):
        raise UserError(
            f"the adapter {path} was trained on another model than this one: use it with the "
            "workdir it started from"
        )
    expected = flatten_dict(jax.eval_shape(adapter.init, root_key(0), denoiser), sep="/")
    matrices = unflatten_dict(fit(arrays, expected, f"the adapter {path}"), sep="/")
    return adapter.merged(denoiser, matrices, scale)


def _read(path: Path) -> tuple[Adapter, str, dict[str, np.ndarray]]:
    """(adapter, fingerprint of its base model, arrays by name)."""
    if not path.is_file():
        raise UserError(
            f"there is no adapter file {path}: training with --config.adapter.rank=8 writes "
            "adapter.safetensors into its workdir"
        )
    about = safetensors_header(path)[0].get(HEADER, "")
    try:
        fields = json.loads(about)
        return (
            Adapter(**{name: fields[name] for name in ("rank", "alpha", "kernels")}),
            fields["base"],
            read_tree(path),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no adapter that vqd_jax.main wrote") from error
