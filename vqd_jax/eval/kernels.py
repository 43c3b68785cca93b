"""Kernel distances: squared maximum mean discrepancies (MMD) of two sets of features, in float64.

The published KID uses the features of InceptionV3, the published CMMD the image embeddings of CLIP
ViT-L/14 at 336 px.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import blocks, check_pair, normalize


def polynomial_mmd2(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"]) -> float:
    """The unbiased squared MMD with the kernel (x.y / d + 1)^3 of KID (Binkowski et al. 2018,
    arXiv:1801.01401); it can be negative.

    UserError for fewer than 2 rows, numbers that are not finite, or widths that differ.
    """
    x, y = check_pair(x, y, ("the first set", "the second set"), least=2)

    def kernel(u, v):
        return (u @ v.T / u.shape[1] + 1) ** 3

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return float(
        mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    )


def kid_subsets(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " subsets"]:
    """`polynomial_mmd2` of random subsets, each drawn without replacement; KID is their mean.
    UserError if a set is smaller than a subset.
    """
    if subsets < 1 or not 2 <= subset_size <= min(len(a), len(b)):
        raise UserError(
            "KID needs subsets >= 1 and 2 <= subset_size <= the number of images, got "
            f"subsets={subsets}, subset_size={subset_size} with {len(a)} and {len(b)} images"
        )
    a, b = check_pair(a, b, ("the first set", "the second set"))
    random = np.random.default_rng(seed)

    def draw(x):
        return x[random.choice(len(x), subset_size, replace=False)]

    return np.array([polynomial_mmd2(draw(a), draw(b)) for _ in range(subsets)])


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"], *, block: int = 4096) -> float:
    """CMMD of image embeddings (Jayasumana et al. 2024, arXiv:2401.09603): 1000 times the biased
    squared MMD, at least 0.

    The kernel is exp(-|x - y|^2 / (2 * 10^2)) of embeddings scaled to length 1. The estimate is
    biased, as in the authors' code, though the paper describes an unbiased one: each mean runs over
    all pairs, an image with itself included, which adds about 1000 (1 - mean kernel) / n for each
    set. Only `block` x `block` values of the kernel are in memory at a time. UserError if widths
    differ, or an embedding is zero or not finite.
    """
    a, b = check_pair(
        normalize(a, "the first set"),
        normalize(b, "the second set"),
        ("the first set", "the second set"),
    )

    def kernel(u, v):
        return np.exp((u @ v.T - 1) / 100)

    def mean(x, y):
        return sum(
            kernel(x[p], y[q]).sum() for p in blocks(len(x), block) for q in blocks(len(y), block)
        ) / (len(x) * len(y))

    return max(0.0, float(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))))
