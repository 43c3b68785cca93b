"""Batch normalisation of a frozen network, folded into the convolution before it."""

from collections.abc import Callable, Mapping

import numpy as np

from vqd_jax.core.errors import UserError

_EPSILON = 1e-3  # of every network here that has such norms


def fold_norms(
    source: Mapping[str, np.ndarray], norm_of: Callable[[str], str | None], what: str
) -> dict[str, np.ndarray]:
    """Replace each convolution W (OIHW) and norm (g, b, m, v) by W s and the bias b - m s, s = g /
    sqrt(v + eps).

    norm_of: a layer's name -> that of its norm, None if it has none. UserError naming a key that is
    missing; what: of the weights.
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
            raise UserError(f"{what} have {key!r} without its normalisation key {error}") from error
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{what} have {key!r} and {norm!r} of shapes that do not go together"
            ) from error
    return folded
