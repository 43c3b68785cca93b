"""The weights of the FID's InceptionV3 as pytorch-fid and torch-fidelity publish them, as
parameters of `models.inception`.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vqd_jax.core.errors import UserError
from vqd_jax.models.inception import SIZE, InceptionV3
from vqd_jax.models.weights.batch_norm import fold_norms
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.rules import Rule, conv, convert, identity, linear

FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
)  # of pytorch-fid; of torch-fidelity
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILES[0]}"
RULES = [
    *(
        Rule(source=rf"{source}\.conv\.{theirs}", target=rf"{target}/{ours}", transform=transform)
        for source, target in ((r"(Conv2d_\w+)", r"\1"), (r"(Mixed_\w+)\.(branch\w+)", r"\1/\2"))
        for theirs, ours, transform in (("weight", "kernel", conv), ("bias", "bias", identity))
    ),
    Rule(source=r"fc\.weight", target="fc/kernel", transform=linear),
    Rule(source=r"fc\.bias", target="fc_bias"),
]


def load_inception(path: str | Path | None = None) -> dict[str, Any]:
    """Parameters of `InceptionV3()`, numpy float32, from one of FILES, or from a safetensors file
    with the same arrays.

    path: of the file or its folder; None is where those packages put what they fetch. UserError if
    it is missing, another network's, or not what the digits in its name promise.
    """
    path = _file(path)
    promised = re.search(r"-([0-9a-f]{8})$", path.stem)
    if promised and (digest := _digest(path))[:8] != promised[1]:
        raise UserError(
            f"{path} is damaged, or not the file of that name: its SHA-256 sum begins with "
            f"{digest[:8]}"
        )
    source = fold_norms(
        flatten(read_tree(path)),
        lambda layer: f"{layer.removesuffix('conv')}bn" if layer.endswith(".conv") else None,
        f"the Inception weights {path}",
    )
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    target = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
    return convert(source, RULES, target, drop=[r".*\.num_batches_tracked"], name=str(path))


def _file(path: str | Path | None) -> Path:
    path = _fetched() if path is None else Path(path).expanduser()
    found = [file for file in (path, *(path / name for name in FILES)) if file.is_file()]
    if not found:
        raise UserError(
            f"there are no Inception weights {path}{'' if path.suffix else f'/{FILES[0]}'}: fetch "
            f"{URL}"
        )
    return found[0]


def _fetched() -> Path:
    """The folder in which torch.hub keeps files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
