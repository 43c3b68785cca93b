"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): kernels become W + (alpha / rank) down up,
with W frozen.

These are pure functions on trees of parameters; `lora_files` stores adapters. The library for this,
qwix, patches jax.lax.dot_general and does not find our linear layers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params, PRNGKey

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
