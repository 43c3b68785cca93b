"""Checks of features before measures use them: float64, finite, of matching shapes."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError


def check_features(features: np.ndarray, name: str, *, least: int = 1) -> Float[np.ndarray, "n d"]:
    """The features of `name` as float64. UserError unless they are at least `least` rows of finite
    numbers.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiu":
        raise UserError(
            f"features of {name} must be numbers of shape (images, width), got {features.dtype} "
            f"of shape {features.shape}"
        )
    if len(features) < least:
        raise UserError(
            f"features of {name} must be of at least {least} images, got {len(features)}"
        )
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise UserError(
            f"features of {name} must be finite, but those of {bad} of {len(features)} images "
            "have NaN or infinity"
        )
    return features.astype(np.float64)


def check_pair(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str], *, least: int = 1
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Checks both sets of features. UserError if their widths differ."""
    a = check_features(a, names[0], least=least)
    b = check_features(b, names[1], least=least)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"features of {names[0]} and {names[1]} must have one width, got {a.shape[1]} and "
            f"{b.shape[1]}"
        )
    return a, b


def normalize(embeddings: Float[np.ndarray, "n d"], name: str) -> Float[np.ndarray, "n d"]:
    """Embeddings scaled to length 1, float64. UserError if one is zero or not finite."""
    embeddings = check_features(embeddings, name)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        raise UserError(
            f"embeddings of {name} must not be zero, but {int((lengths == 0).sum())} of "
            f"{len(embeddings)} are"
        )
    return embeddings / lengths


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows in order."""
    if size < 1:
        raise UserError(f"blocks need at least one row, got {size}")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
