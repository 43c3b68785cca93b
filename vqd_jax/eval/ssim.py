"""Structural similarity of images (Wang, Bovik, Sheikh, Simoncelli 2004,
doi:10.1109/TIP.2003.819861), in float64.
"""

import numpy as np
from jaxtyping import Float, UInt8

from vqd_jax.core.errors import UserError

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(
    x: UInt8[np.ndarray, "n H W c"], y: UInt8[np.ndarray, "m h w d"]
) -> Float[np.ndarray, " n"]:
    """Of each pair, in [-1, 1], 1 for equal images: the mean over channels, and over the pixels
    whose whole window is in the image.

    Local means, variances and covariances have Gaussian weights that sum to 1. Images keep their
    size: they are not made smaller first, as the authors' program does with large ones, and colours
    not turned to grey. UserError unless both sets are uint8 of one shape with at least 11 x 11
    pixels.
    """
    if (
        x.shape != y.shape
        or x.ndim != 4
        or x.dtype != np.uint8
        or y.dtype != np.uint8
        or not x.size
    ):
        raise UserError(
            "SSIM needs two sets of uint8 images of one shape (n, height, width, channels), got "
            f"{x.dtype} {x.shape} "
            f"and {y.dtype} {y.shape}"
        )
    if min(x.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {x.shape[1]} x "
            f"{x.shape[2]}"
        )
    return np.array(
        [_ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(x, y, strict=True)]
    )


def _ssim(x: Float[np.ndarray, "H W c"], y: Float[np.ndarray, "H W c"]) -> float:
    mean_x, mean_y, xx, yy, xy = _local_means(np.stack([x, y, x * x, y * y, x * y]))
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return float((luminance * (2 * covariance + C2) / (variances + C2)).mean())


def _local_means(maps: Float[np.ndarray, "k H W c"]) -> Float[np.ndarray, "k h w c"]:
    """Over the windows that are inside."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    weights /= weights.sum()
    for axis in (1, 2):
        size = maps.shape[axis] - WINDOW + 1
        maps = sum(
            weight * maps[(slice(None),) * axis + (slice(i, i + size),)]
            for i, weight in enumerate(weights)
        )
    return maps
