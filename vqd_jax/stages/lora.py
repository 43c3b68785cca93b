"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): kernels become W + (alpha / rank) down up,
of which W stays as it was.

Pure functions on trees of parameters: the library for this, qwix, patches jax.lax.dot_general and
does not find our linear layers.
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
from vqd_jax.core.shapes import PRNGKey
from vqd_jax.models.weights.files import read_tree, safetensors_header, write_safetensors
from vqd_jax.runtime.checkpoint import fit

KERNELS = {
    "attention": ("self_attention", "cross_attention"),
    "all": ("self_attention", "cross_attention", "mlp_in", "mlp_out"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Which kernels of a denoiser get an adapter, and how large it is.

    Attributes:
      rank: columns of down and rows of up; 0 is no adapter.
      alpha: their product counts alpha / rank times.
      kernels: "attention", or "all" for attention and MLP.
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

    def init(self, key: PRNGKey, denoiser: dict[str, Any]) -> dict[str, Any]:
        """{"down": (in, rank), "up": (rank, out)} in the place of each kernel; up is 0, so that
        nothing changes yet.

        The kernel of a convolution (3, 3, in, out) counts as a matrix with 9 in rows.
        """
        flat, out = flatten_dict(denoiser), {}
        places = sorted(
            place
            for place in flat
            if place[-1] == "kernel" and set(place) & set(KERNELS[self.kernels])
        )
        for one, place in zip(jax.random.split(key, len(places)), places):
            *rows, columns = flat[place].shape
            down = jax.random.normal(one, (math.prod(rows), self.rank)) * math.prod(rows) ** -0.5
            out[place] = {"down": down, "up": jnp.zeros((self.rank, columns))}
        return unflatten_dict(out)

    def merged(
        self, denoiser: dict[str, Any], parts: dict[str, Any], scale: float = 1.0
    ) -> dict[str, Any]:
        """The denoiser's parameters with the adapter, `scale` times, in its kernels."""
        flat, parts = flatten_dict(denoiser), flatten_dict(parts)
        for place in {place[:-1] for place in parts}:
            change = jnp.matmul(parts[*place, "down"], parts[*place, "up"], precision="highest")
            flat[place] = flat[place] + scale * self.alpha / self.rank * change.reshape(
                flat[place].shape
            )
        return unflatten_dict(flat)


def fingerprint(denoiser: dict[str, Any]) -> str:
    """SHA-256 of the weights in half precision, with one zero: an exported copy has that of the
    weights it was made from.
    """
    digest = hashlib.sha256()
    for place, leaf in sorted(flatten_dict(denoiser, sep="/").items()):
        digest.update(f"{place} {np.shape(leaf)} ".encode())
        digest.update((np.asarray(leaf).astype(np.float16) + np.float16(0)).tobytes())
    return digest.hexdigest()


def write(path: Path, adapter: Adapter, weights: dict[str, Any]) -> None:
    """The adapter in a run's weights as a safetensors file that knows its base; an older file is
    replaced at once.
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
    with atomic_write(path) as part:
        write_safetensors(part, arrays, {"vqd_jax.stages.lora": about})


def apply_file(
    path: str | os.PathLike, denoiser: dict[str, Any], *, scale: float = 1.0
) -> dict[str, Any]:
    """The denoiser's parameters with the adapter in that file, `scale` times.

    UserError if there is none, if it is damaged, or if it was trained on another denoiser.
    """
    adapter, base, arrays = _read(Path(path))
    if base != fingerprint(denoiser):
        raise UserError(
            f"the adapter {path} was trained on another model than this one: use it with the "
            "workdir it began with"
        )
    wanted = flatten_dict(jax.eval_shape(adapter.init, jax.random.key(0), denoiser), sep="/")
    parts = unflatten_dict(fit(arrays, wanted, f"the adapter {path}"), sep="/")
    return adapter.merged(denoiser, parts, scale)


def _read(path: Path) -> tuple[Adapter, str, dict[str, np.ndarray]]:
    """(adapter, fingerprint of its base, arrays by name)."""
    if not path.is_file():
        raise UserError(
            f"there is no adapter file {path}: training with --config.adapter.rank=8 writes "
            "adapter.safetensors into its workdir"
        )
    about = safetensors_header(path)[0].get("vqd_jax.stages.lora", "")
    try:
        fields = json.loads(about)
        return (
            Adapter(**{name: fields[name] for name in ("rank", "alpha", "kernels")}),
            fields["base"],
            read_tree(path),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no adapter that vqd_jax.main wrote") from error
