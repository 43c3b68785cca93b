"""The measures of a protocol by name, on what was gathered of generated and real pictures.

A distance is called FID or KID only with the features of InceptionV3; with others it is named after
those.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import blocks
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.frechet import frechet_distance
from vqd_jax.eval.metrics import kid_values
from vqd_jax.eval.neighbours import neighbourhoods

FRECHET = {
    "inception": "fid",
    "vgg16": "frechet_vgg16",
    "efficientnet_lite0": "frechet_efficientnet_lite0",
    "clip": "frechet_clip",
}
KERNEL = {
    "inception": "kid",
    "vgg16": "vgg_kid",
    "efficientnet_lite0": "efficientnet_lite0_kid",
    "clip": "clip_kid",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean and covariance of features, as others publish them of real pictures; `path` is their
    file.
    """

    path: Path
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]

    @classmethod
    def read(cls, path: Path) -> "Statistics":
        """`mu` and `sigma` of a .npz file, as pytorch-fid and guided-diffusion write them;
        UserError if they are not there.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                mean, covariance = (
                    np.asarray(stored[name], np.float64) for name in ("mu", "sigma")
                )
        except Exception as error:  # damaged archives raise nearly anything
            raise UserError(
                f"{path} does not hold statistics, mu and sigma in a .npz file "
                f"({type(error).__name__}: {error})"
            ) from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(
                f"{path} has statistics of shapes {mean.shape} and {covariance.shape} instead of "
                "(d,) and (d, d)"
            )
        return cls(path=path, mean=mean, covariance=covariance)


def frechet(features: str, made: Collected, real: Collected | Statistics) -> dict[str, float]:
    mean, covariance = (
        (real.mean, real.covariance)
        if isinstance(real, Statistics)
        else (real.moments.mean, real.moments.covariance)
    )
    return {
        FRECHET[features]: frechet_distance(
            made.moments.mean, made.moments.covariance, mean, covariance
        )
    }


def kernel(
    made: Collected, real: Collected, *, subsets: int, subset_size: int, seed: int
) -> np.ndarray:
    """The kernel distance of each subset; a subset has at most half of the pictures."""
    size = min(subset_size, len(made.features) // 2, len(real.features) // 2)
    if size < 2:
        raise UserError(
            f"a kernel distance needs at least 4 pictures of each kind, got {len(made.features)} "
            f"and {len(real.features)}"
        )
    return kid_values(made.features, real.features, subsets=subsets, subset_size=size, seed=seed)


def knn(made: Collected, real: Collected, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage."""
    return asdict(neighbourhoods(real.features, made.features, k=k))


def nearest_distance(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1024,
) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """The cosine similarity of each row of `a` with the most similar row of `b` (of the same
    label), and where that is.
    """
    scaled = lambda x: (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(
        np.float32
    )
    a, b, out = scaled(a), scaled(b), []
    for rows in blocks(len(a), block):
        cosines = a[rows] @ b.T
        if labels:
            cosines = np.where(labels[0][rows, None] == labels[1][None], cosines, -np.inf)
        out.append((cosines.max(axis=1), cosines.argmax(axis=1)))
    return tuple(map(np.concatenate, zip(*out, strict=True)))
