"""The measures of a protocol by name, from the collected features of generated and real images.

A distance is called FID or KID only with the features of InceptionV3; otherwise its name says which
features it has.
"""

from dataclasses import asdict

import numpy as np
from jaxtyping import Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import blocks
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.frechet import Statistics, frechet_distance
from vqd_jax.eval.kernels import kid_subsets
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


def frechet_measure(
    features: str, generated: Collected, real: Collected | Statistics
) -> dict[str, float]:
    """The Fréchet distance under the name that its features have."""
    a, b = generated.moments, real if isinstance(real, Statistics) else real.moments
    return {FRECHET[features]: frechet_distance(a.mean, a.covariance, b.mean, b.covariance)}


def kernel_distances(
    generated: Collected, real: Collected, *, subsets: int, subset_size: int, seed: int
) -> Float[np.ndarray, " subsets"]:
    """The kernel distance of each subset; a subset has at most half of the images."""
    a, b = generated.features, real.features
    size = min(subset_size, len(a) // 2, len(b) // 2)
    if size < 2:
        raise UserError(
            "a kernel distance needs at least 4 generated and 4 real images, got "
            f"{len(a)} and {len(b)}"
        )
    return kid_subsets(a, b, subsets=subsets, subset_size=size, seed=seed)


def neighbour_measures(generated: Collected, real: Collected, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage."""
    return asdict(neighbourhoods(real.features, generated.features, k=k))


def most_similar(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1024,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row of `a`, the largest cosine similarity with a row of `b` (with the same label, if
    there are labels), and the index of that row.
    """
    scale = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    a, b = scale(a).astype(np.float32), scale(b).astype(np.float32)
    values, nearest = [], []
    for rows in blocks(len(a), block):
        cosines = a[rows] @ b.T
        if labels:
            cosines = np.where(labels[0][rows, None] == labels[1][None], cosines, -np.inf)
        values.append(cosines.max(axis=1))
        nearest.append(cosines.argmax(axis=1))
    return np.concatenate(values), np.concatenate(nearest)
