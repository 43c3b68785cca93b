"""Quality of reconstructions, in float64: PSNR, SSIM (Wang, Bovik, Sheikh, Simoncelli 2004,
doi:10.1109/TIP.2003.819861) and the use of the codebook.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqd_jax.core.errors import UserError

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(
    x: UInt8[np.ndarray, "n H W c"], y: UInt8[np.ndarray, "m h w d"]
) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each pair in dB; inf for equal images. UserError unless both
    sets are uint8 of one shape.
    """
    _check("PSNR", x, y)
    error = np.mean(np.square(x.astype(np.float64) - y.astype(np.float64)), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def ssim(
    x: UInt8[np.ndarray, "n H W c"], y: UInt8[np.ndarray, "m h w d"]
) -> Float[np.ndarray, " n"]:
    """SSIM of each pair, in [-1, 1], 1 for equal images: the mean over channels and over pixels
    whose window lies inside the image.

    Local means, variances and covariances have Gaussian weights that sum to 1. Unlike the authors'
    program, large images are not downsampled and colours not converted to grey. UserError unless
    both sets are uint8 of one shape with at least 11 x 11 pixels.
    """
    _check("SSIM", x, y)
    if min(x.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {x.shape[1]} x "
            f"{x.shape[2]}"
        )
    return np.array(
        [_ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(x, y, strict=True)]
    )


def _check(measure: str, x: np.ndarray, y: np.ndarray) -> None:
    if (
        x.shape != y.shape
        or x.ndim != 4
        or x.dtype != np.uint8
        or y.dtype != np.uint8
        or not x.size
    ):
        raise UserError(
            f"{measure} needs two sets of uint8 images of one shape (n, height, width, channels), "
            f"got {x.dtype} {x.shape} and {y.dtype} {y.shape}"
        )


def _ssim(x: Float[np.ndarray, "H W c"], y: Float[np.ndarray, "H W c"]) -> float:
    mean_x, mean_y, xx, yy, xy = _local_means(np.stack([x, y, x * x, y * y, x * y]))
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return float((luminance * (2 * covariance + C2) / (variances + C2)).mean())


def _local_means(maps: Float[np.ndarray, "k H W c"]) -> Float[np.ndarray, "k h w c"]:
    """Weighted means over all windows inside the image."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    weights /= weights.sum()
    for axis in (1, 2):
        size = maps.shape[axis] - WINDOW + 1
        maps = sum(
            weight * maps[(slice(None),) * axis + (slice(i, i + size),)]
            for i, weight in enumerate(weights)
        )
    return maps


def codebook_use(tokens: Int[np.ndarray, "..."], codes: int) -> tuple[float, float]:
    """Perplexity exp(H) of the token frequencies, in [1, codes], and the fraction of used codes."""
    if not tokens.size or tokens.min() < 0 or tokens.max() >= codes:
        raise UserError(f"codebook use needs at least one token, all in [0, {codes})")
    p = np.bincount(tokens.ravel(), minlength=codes) / tokens.size
    used = p[p > 0]
    return float(np.exp(-np.sum(used * np.log(used)))), len(used) / codes
