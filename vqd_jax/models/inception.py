"""InceptionV3 as the Fréchet inception distance uses it (Szegedy et al. 2016; the graph of
2015-12-05), inference only.

It is not torchvision's network: average pools leave the padding out, the last block takes a maximum
instead, and there are 1008 classes. Batch normalisation is folded into the convolutions when the
weights are converted.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vqd_jax.core.errors import UserError

SIZE = 299
MIN_SIZE = 75  # smaller images have no pixel left before the last pool
CLASSES = 1008
WIDTHS = {
    "64": 64,
    "192": 192,
    "768": 768,
    "2048": 2048,
    "logits_unbiased": CLASSES,
    "logits": CLASSES,
}

Activations = Float[Array, "b _ _ _"]
Layer = tuple[int, int, int]  # channels, kernel height, kernel width
# A name and layers in a row; a pair of layers is a fork: both get the same input, and their outputs
# are concatenated.
Branch = tuple[str, tuple[Layer | tuple[Layer, Layer], ...]]


def _max_pool(x: Activations) -> Activations:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: Activations) -> Activations:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Activations) -> Activations:
    return nn.max_pool(x, (3, 3), padding="SAME")


class Conv(nn.Module):
    """Convolution with a bias, then ReLU."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (*self.kernel, x.shape[-1], self.channels)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        strides = (self.stride, self.stride)
        y = lax.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(y + bias[None, None, None])


class Mixed(nn.Module):
    """Branches of convolutions and a pooled one, concatenated along the channels.

    Attributes:
      pooled: channels of the convolution after the pool; with 0 there is none, and every branch
        ends with a stride of 2.
    """

    branches: tuple[Branch, ...]
    pool: Callable[[Activations], Activations] = _max_pool
    pooled: int = 0

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        outputs = []
        for name, layers in self.branches:
            y = x
            for i, layer in enumerate(layers, start=1):
                label = name if len(layers) == 1 else f"{name}_{i}"
                forks = (
                    {label + letter: fork for letter, fork in zip("ab", layer)}
                    if isinstance(layer[0], tuple)
                    else {label: layer}
                )
                step = (2, "VALID") if not self.pooled and i == len(layers) else (1, "SAME")
                y = jnp.concatenate(
                    [Conv(c, (h, w), *step, name=fork)(y) for fork, (c, h, w) in forks.items()],
                    axis=-1,
                )
            outputs.append(y)
        y = self.pool(x)
        outputs.append(Conv(self.pooled, (1, 1), name="branch_pool")(y) if self.pooled else y)
        return jnp.concatenate(outputs, axis=-1)


def _small(pooled: int) -> dict[str, Any]:
    return {
        "pool": _average,
        "pooled": pooled,
        "branches": (
            ("branch1x1", ((64, 1, 1),)),
            ("branch5x5", ((48, 1, 1), (64, 5, 5))),
            ("branch3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3))),
        ),
    }


def _factorised(c: int) -> dict[str, Any]:
    return {
        "pool": _average,
        "pooled": 192,
        "branches": (
            ("branch1x1", ((192, 1, 1),)),
            ("branch7x7", ((c, 1, 1), (c, 1, 7), (192, 7, 1))),
            ("branch7x7dbl", ((c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))),
        ),
    }


def _wide(pool: Callable[[Activations], Activations]) -> dict[str, Any]:
    fork = ((384, 1, 3), (384, 3, 1))
    return {
        "pool": pool,
        "pooled": 192,
        "branches": (
            ("branch1x1", ((320, 1, 1),)),
            ("branch3x3", ((384, 1, 1), fork)),
            ("branch3x3dbl", ((448, 1, 1), (384, 3, 3), fork)),
        ),
    }


BLOCKS = {
    "Mixed_5b": _small(32),
    "Mixed_5c": _small(64),
    "Mixed_5d": _small(64),
    "Mixed_6a": {
        "branches": (
            ("branch3x3", ((384, 3, 3),)),
            ("branch3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3))),
        )
    },
    "Mixed_6b": _factorised(128),
    "Mixed_6c": _factorised(160),
    "Mixed_6d": _factorised(160),
    "Mixed_6e": _factorised(192),
    "Mixed_7a": {
        "branches": (
            ("branch3x3", ((192, 1, 1), (320, 3, 3))),
            ("branch7x7x3", ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))),
        )
    },
    "Mixed_7b": _wide(_average),
    "Mixed_7c": _wide(_maximum),
}


class InceptionV3(nn.Module):
    """Images in [-1, 1], usually 299 pixels a side -> the features of WIDTHS: global averages after
    each stage, and logits.

    `logits_unbiased` are the logits minus their bias, which torch-fidelity uses for the Inception
    score.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> dict[str, Float[Array, "b _"]]:
        if min(images.shape[1:3]) < MIN_SIZE:
            raise UserError(
                f"InceptionV3 needs images of at least {MIN_SIZE} pixels a side, got "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        out = {}
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(images)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _max_pool(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        out["64"] = _global_average(x)
        x = Conv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _max_pool(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        out["192"] = _global_average(x)
        for name, block in BLOCKS.items():
            x = Mixed(**block, name=name)(x)
            if name == "Mixed_6e":
                out["768"] = _global_average(x)
        out["2048"] = _global_average(x)
        out["logits_unbiased"] = nn.Dense(CLASSES, use_bias=False, name="fc")(out["2048"])
        out["logits"] = (
            out["logits_unbiased"] + self.param("fc_bias", nn.initializers.zeros, (CLASSES,))[None]
        )
        return out


def _global_average(x: Activations) -> Float[Array, "b _"]:
    return jnp.mean(x, axis=(1, 2))
