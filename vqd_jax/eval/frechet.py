"""The Fréchet distance between two sets of features, from their means and covariances, which are
accumulated batch by batch in float64.

It is FID (Heusel et al. 2017, arXiv:1706.08500) only with the features of InceptionV3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import check_features
from vqd_jax.eval.npz import stored_arrays

WIDEST = 8192  # features whose statistics are read
ROUNDING = 1e-6  # of covariances that were stored as float32, relative to their largest entry


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Moments of `count` features, float64: their mean, and `scatter`, the sum of the outer
    products of their deviations from it.

    a + b are the moments of both sets together (Chan, Golub, LeVeque 1979). Without sums of
    squares, which lose digits, the result depends on order and batches only by rounding.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Moments of one batch of at least one image. UserError if a feature is not finite."""
        features = check_features(features, "a batch")
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(count=len(features), mean=mean, scatter=deviations.T @ deviations)

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"features of all batches must have one width, got {len(self.mean)} and "
                f"{len(other.mean)}"
            )
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + shift * (other.count / count),
            scatter=self.scatter
            + other.scatter
            + np.outer(shift, shift) * (self.count * (other.count / count)),
        )

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased, as numpy.cov gives it; UserError for fewer than two images."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Published mean and covariance of the features of real images, from the file `path`."""

    path: Path
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]

    @classmethod
    def read(cls, path: Path) -> "Statistics":
        """Reads `mu` and `sigma` of an .npz file, as pytorch-fid and guided-diffusion write them.
        UserError if they are missing, or if sigma is no covariance.
        """
        stored = stored_arrays(path, ("mu", "sigma"))
        if missing := {"mu", "sigma"} - stored.keys():
            raise UserError(
                f"{path} does not hold statistics, mu and sigma in an .npz file: there is no "
                f"{' and no '.join(sorted(missing))}"
            )
        mu, sigma = stored["mu"], stored["sigma"]
        if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
            raise UserError(
                f"{path} has statistics of {mu.dtype} and {sigma.dtype} instead of floats"
            )
        if len(mu.shape) != 1 or sigma.shape != 2 * mu.shape or mu.shape[0] > WIDEST:
            raise UserError(
                f"{path} has statistics of shapes {mu.shape} and {sigma.shape} instead of (d,) and "
                f"(d, d), d up to {WIDEST}"
            )
        mean, covariance = mu.read().astype(np.float64), sigma.read().astype(np.float64)
        check_covariance(covariance, f"sigma in {path}")
        return cls(path=path, mean=mean, covariance=covariance)


def check_covariance(covariance: Float[np.ndarray, "d d"], name: str) -> None:
    """UserError unless the matrix is finite, symmetric and positive semi-definite, up to the
    rounding of float32.
    """
    largest = np.abs(covariance).max(initial=0.0)
    if not np.isfinite(largest):
        raise UserError(f"{name} must be finite, got NaN or infinity")
    if np.abs(covariance - covariance.T).max(initial=0.0) > ROUNDING * largest:
        raise UserError(f"{name} must be a covariance, but the matrix is not symmetric")
    lowest = np.linalg.eigvalsh(covariance).min(initial=0.0)
    if lowest < -ROUNDING * len(covariance) * largest:
        raise UserError(
            f"{name} must be a covariance, but the matrix has the negative eigenvalue {lowest:.3g}"
        )


def frechet_distance(
    mean_a: Float[np.ndarray, " d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " e"],
    covariance_b: Float[np.ndarray, "e e"],
) -> float:
    """|mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2) for Gaussians with covariances A and B
    of any rank; at least 0.

    The last trace is the sum of the singular values of A^(1/2) B^(1/2), the roots of the
    eigenvalues of the symmetric A^(1/2) B A^(1/2). UserError if widths differ or a number is not
    finite.
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        np.asarray(x, np.float64) for x in (mean_a, covariance_a, mean_b, covariance_b)
    )
    for mean, covariance in ((mean_a, covariance_a), (mean_b, covariance_b)):
        if covariance.shape != (len(mean), len(mean)) or len(mean) != len(mean_a) or not len(mean):
            raise UserError(
                "a Fréchet distance needs means and covariances of one width, got "
                f"{mean_a.shape}, {covariance_a.shape}, "
                f"{mean_b.shape} and {covariance_b.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(
                "a Fréchet distance needs finite means and covariances, got NaN or infinity"
            )
        check_covariance(covariance, "the covariance of a Fréchet distance")
    shift = mean_a - mean_b
    product = _half(covariance_a).T @ _half(covariance_b)
    overlap = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    return max(
        0.0, float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
    )


def _half(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """L with L L^T = covariance, where r is its numerical rank. Eigenvalues that are zero up to
    rounding (1e-16) are dropped, since their roots would count (1e-8).
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])
