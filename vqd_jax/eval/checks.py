"""Features as the measures take them: one row for each image, in float64, finite; anything else is
a sentence.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError


def rows(features: np.ndarray, what: str, *, least: int = 1) -> Float[np.ndarray, "n d"]:
    """Features of `what` as float64; UserError unless they are at least `least` rows of finite
    numbers.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiu":
        raise UserError(
            f"features of {what} must be numbers of shape (images, width), got {features.dtype} "
            f"of shape {features.shape}"
        )
    if len(features) < least:
        raise UserError(
            f"features of {what} must be of at least {least} images, got {len(features)}"
        )
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise UserError(
            f"features of {what} must be finite, but those of {bad} of {len(features)} images "
            "have NaN or infinity"
        )
    return features.astype(np.float64)


def two_sets(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str], *, least: int = 1
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Both sets as `rows` gives them; UserError if their widths differ."""
    a, b = rows(a, names[0], least=least), rows(b, names[1], least=least)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"features of {names[0]} and {names[1]} must have one width, got {a.shape[1]} and "
            f"{b.shape[1]}"
        )
    return a, b


def unit(embeddings: Float[np.ndarray, "n d"], what: str) -> Float[np.ndarray, "n d"]:
    """Embeddings of `what` scaled to length 1, float64; UserError if one is 0 or not finite."""
    embeddings = rows(embeddings, what)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        raise UserError(
            f"embeddings of {what} must not be 0, but {int((lengths == 0).sum())} of "
            f"{len(embeddings)} are"
        )
    return embeddings / lengths


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover n rows in order."""
    if size < 1:
        raise UserError(f"blocks need at least one row, got {size}")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
