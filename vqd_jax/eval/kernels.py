"""Kernel distances: squared maximum mean discrepancies of two sets of features or embeddings, in
float64.

The published KID has the features of InceptionV3, the published CMMD the image embeddings of CLIP
ViT-L/14 at 336 px.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.eval.checks import blocks, two_sets, unit


def polynomial_mmd2(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"]) -> float:
    """Unbiased, with the kernel (x.y / d + 1)^3 of KID (Binkowski et al. 2018, arXiv:1801.01401);
    it can be negative.

    UserError for fewer than 2 rows, numbers that are not finite, or widths that differ.
    """
    x, y = two_sets(x, y, ("the one set", "the other"), least=2)

    def kernel(u, v):
        return (u @ v.T / u.shape[1] + 1) ** 3

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return float(
        mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    )


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"], *, block: int = 4096) -> float:
    """CMMD of image embeddings (Jayasumana et al. 2024, arXiv:2401.09603): 1000 times the biased
    squared discrepancy, >= 0.

    The kernel is exp(-|x - y|^2 / (2 * 10^2)) of embeddings of length 1, to which they are scaled
    here. Biased, as in the authors' code, though the paper speaks of an unbiased one: each mean
    runs over all pairs, an image with itself included, which adds about 1000 (1 - mean kernel) / n
    for each set. Only `block` x `block` values of the kernel are held at a time. UserError if
    widths differ, or an embedding is 0 or not finite.
    """
    a, b = two_sets(unit(a, "the one set"), unit(b, "the other"), ("the one set", "the other"))

    def kernel(u, v):
        return np.exp((u @ v.T - 1) / 100)

    def mean(x, y):
        return sum(
            kernel(x[p], y[q]).sum() for p in blocks(len(x), block) for q in blocks(len(y), block)
        ) / (len(x) * len(y))

    return max(0.0, float(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))))
