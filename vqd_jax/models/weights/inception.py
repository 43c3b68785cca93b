"""Converts the weights of the FID's InceptionV3, as pytorch-fid and torch-fidelity publish them, to
parameters of `models.inception`.
"""

import hashlib
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from vqd_jax.core.errors import UserError
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.models.inception import SIZE, InceptionV3
from vqd_jax.models.weights.batch_norm import fold_norms
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.rules import Rule, conv, convert, layer_rules, linear

FILES = (
    "pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid
    "weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity
)
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILES[0]}"
RULES = [
    *layer_rules(r"(Conv2d_\w+)\.conv", r"\1", conv),
    *layer_rules(r"(Mixed_\w+)\.(branch\w+)\.conv", r"\1/\2", conv),
    Rule(source=r"fc\.weight", target="fc/kernel", transform=linear),
    Rule(source=r"fc\.bias", target="fc_bias"),
]


def load_inception(path: str | Path | None = None) -> Params:
    """Parameters of `InceptionV3()`, numpy float32.

    `path` is one of FILES, a safetensors file with the same arrays, or their folder; None is the
    folder where those packages cache their downloads. UserError if it is missing, of another
    network, or does not have the checksum in its name.
    """
    path = _file(path)
    checksum = re.search(r"-([0-9a-f]{8})$", path.stem)
    if checksum and (digest := _digest(path))[:8] != checksum[1]:
        raise UserError(
            f"{path} is damaged, or another file: its SHA-256 checksum begins with {digest[:8]}, "
            f"not with {checksum[1]}"
        )
    source = fold_norms(
        flatten(read_tree(path)),
        lambda layer: f"{layer.removesuffix('conv')}bn" if layer.endswith(".conv") else None,
        f"the Inception weights {path}",
    )
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    target = jax.eval_shape(InceptionV3().init, root_key(0), images)["params"]
    return convert(source, RULES, target, drop=[r".*\.num_batches_tracked"], name=str(path))


def _file(path: str | Path | None) -> Path:
    path = _torch_cache() if path is None else Path(path).expanduser()
    files = [file for file in (path, *(path / name for name in FILES)) if file.is_file()]
    if not files:
        missing = path if path.suffix else path / FILES[0]
        raise UserError(f"there are no Inception weights {missing}: download {URL}")
    return files[0]


def _torch_cache() -> Path:
    """The folder of torch.hub's downloads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
