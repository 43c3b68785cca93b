"""Batch normalisation of a frozen network, folded into the convolution before it."""

from collections.abc import Callable, Mapping

import numpy as np

from vqd_jax.core.errors import UserError

_EPSILON = 1e-3  # of the norms of every network here


def fold_norms(
    source: Mapping[str, np.ndarray], norm_of: Callable[[str], str | None], name: str
) -> dict[str, np.ndarray]:
    """Replaces each convolution W (OIHW) and its norm (g, b, m, v) by W s and a bias b - m s, where
    s = g / sqrt(v + eps).

    `norm_of` maps the name of a layer to that of its norm, or to None; `name` is that of the
    weights, for messages. UserError naming a key that is missing.
    """
    folded = dict(source)
    for key in source:
        layer, _, leaf = key.rpartition(".")
        norm = norm_of(layer) if leaf == "weight" else None
        if norm is None:
            continue
        try:
            gain, bias, mean, variance = (
                folded.pop(f"{norm}.{k}").astype(np.float64)
                for k in ("weight", "bias", "running_mean", "running_var")
            )
            gain /= np.sqrt(variance + _EPSILON)
            folded |= {
                key: source[key] * gain[:, None, None, None],
                f"{layer}.bias": bias - mean * gain,
            }
        except KeyError as error:
            raise UserError(f"{name} have {key!r} without its normalisation key {error}") from error
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{name} have {key!r} and {norm!r} of shapes that do not match"
            ) from error
    return folded
