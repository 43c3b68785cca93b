"""The measures of a protocol by name, from the collected features of generated and real images.

A distance is called FID or KID only with the features of InceptionV3; otherwise its name says which
features it has.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.eval import intervals
from vqd_jax.eval.checks import blocks
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.frechet import Statistics, frechet_distance
from vqd_jax.eval.kernels import Records, kid_subsets, polynomial_mmd2_error
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


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelDistance:
    """A kernel distance.

    Attributes:
      values: of each subset; their mean is the distance, their standard deviation depends on
        `subset_size` and is no error of that mean, since subsets share images.
      subset_size: images of each set in a subset.
      error: standard error of the distance: of the sets by a jackknife, and of drawing subsets.
    """

    values: Float[np.ndarray, " subsets"]
    subset_size: int
    error: float

    def measures(self, name: str) -> dict[str, Any]:
        value = float(np.mean(self.values))
        return {
            name: value,
            name + intervals.SUFFIX: [*intervals.normal(value, self.error)],
            f"{name}_std": float(np.std(self.values)),
            f"{name}_subset_size": self.subset_size,
        }


def kernel_distance(
    generated: Collected,
    real: Collected,
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    records: Records | None = None,
) -> KernelDistance:
    """The kernel distance of subsets of at most half of the images; see `kernels.kid_subsets`.

    `records` name the record of each generated image and of each real one whose features are kept;
    pairs of one record are left out.
    """
    a, b = generated.features, real.features
    size = min(subset_size, len(a) // 2, len(b) // 2)
    if size < 2:
        raise UserError(
            "a kernel distance needs at least 4 generated and 4 real images, got "
            f"{len(a)} and {len(b)}"
        )
    values = kid_subsets(a, b, subsets=subsets, subset_size=size, seed=seed, records=records)
    error = polynomial_mmd2_error(a, b, records)
    return KernelDistance(
        values=values,
        subset_size=size,
        error=math.hypot(error, float(np.std(values)) / math.sqrt(subsets)),
    )


def copies(generated: Collected, real: Collected) -> tuple[Records, int]:
    """Records of two sets of images of unknown origin, and how many generated images are copies.

    A generated image with the pixels of a real one is a copy of it and has its record; further
    equal ones, which a model that repeats itself has, do not.
    """
    count = len(real.digests)
    free: dict[bytes, list[int]] = {}
    for i in reversed(range(count)):
        free.setdefault(real.digests[i], []).append(i)
    records = []
    for i, digest in enumerate(generated.digests):
        equal = free.get(digest)
        records.append(equal.pop() if equal else count + i)
    return (records, [*range(count)]), sum(i < count for i in records)


def neighbour_measures(
    generated: Collected, real: Collected, k: int, *, closed: bool = False
) -> dict[str, float]:
    """Precision, recall, density and coverage."""
    return asdict(neighbourhoods(real.features, generated.features, k=k, closed=closed))


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
