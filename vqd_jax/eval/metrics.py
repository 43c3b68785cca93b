"""Metrics on arrays, in float64 numpy: PSNR, the kernel distance KID, use of a codebook, and nats
to bits.

A kernel distance is named after its features (EfficientNet-KID, VGG-KID); only Inception's give the
published KID.
"""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import two_sets
from vqd_jax.eval.kernels import polynomial_mmd2


def psnr(
    x: UInt8[np.ndarray, "n H W c"], y: UInt8[np.ndarray, "n H W c"]
) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each pair, dB; inf for equal images."""
    error = np.mean(np.square(x.astype(np.float64) - y.astype(np.float64)), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def kid(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance of two sets of features: mean and standard deviation of `kid_values`."""
    values = kid_values(a, b, subsets=subsets, subset_size=subset_size, seed=seed)
    return float(np.mean(values)), float(np.std(values))


def kid_values(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " subsets"]:
    """`polynomial_mmd2` of random subsets, each drawn without replacement; UserError if a set is
    smaller than a subset.
    """
    if subsets < 1 or not 2 <= subset_size <= min(len(a), len(b)):
        raise UserError(
            "KID needs subsets >= 1 and 2 <= subset_size <= the number of images, got "
            f"subsets={subsets}, "
            f"subset_size={subset_size} with {len(a)} and {len(b)} images"
        )
    a, b = two_sets(a, b, ("the one set", "the other"))
    random = np.random.default_rng(seed)

    def draw(x):
        return x[random.choice(len(x), subset_size, replace=False)]

    return np.array([polynomial_mmd2(draw(a), draw(b)) for _ in range(subsets)])


def codebook_use(tokens: Int[np.ndarray, "..."], codes: int) -> tuple[float, float]:
    """Perplexity exp(H) of the frequencies of the tokens, in [1, codes], and the fraction of the
    codes that occur.
    """
    if not tokens.size or tokens.min() < 0 or tokens.max() >= codes:
        raise UserError(f"codebook use needs at least one token, all in [0, {codes})")
    p = np.bincount(tokens.ravel(), minlength=codes) / tokens.size
    used = p[p > 0]
    return float(np.exp(-np.sum(used * np.log(used)))), len(used) / codes


def bits(nats: float) -> float:
    return nats / math.log(2)


def bits_per_dim(nats_per_image: float, dims: int) -> float:
    """Bits per dimension, for example per token or, with dims = H W c, per colour value of a pixel."""
    return bits(nats_per_image) / dims
