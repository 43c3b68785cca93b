"""The Fréchet distance of two sets of features, from mean and covariance that are gathered batch by
batch in float64.

It is FID (Heusel et al. 2017, arXiv:1706.08500) only with the features of InceptionV3; with others
it is named after those.
"""

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Of `count` features: their mean, and `scatter`, the sum of the outer products of their
    deviations from it; float64.

    a + b is of both together (Chan, Golub, LeVeque 1979): sums of squares, which lose digits, never
    occur, so that neither order nor batches, devices or processes matter beyond rounding.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Of one batch of at least one image; UserError if a feature is not finite."""
        features = rows(features, "a batch")
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


def moments(batches: Iterable[Float[np.ndarray, "_ d"]]) -> Moments:
    """Of all features of the batches, of which only one is held at a time; UserError if there is
    none.
    """
    parts = map(Moments.of, batches)
    if (first := next(parts, None)) is None:
        raise UserError("there are no features to take mean and covariance of")
    return functools.reduce(operator.add, parts, first)


def frechet_distance(
    mean_a: Float[np.ndarray, " d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " e"],
    covariance_b: Float[np.ndarray, "e e"],
) -> float:
    """|mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2) of Gaussians with covariances A, B, of
    any ranks; >= 0.

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
    shift = mean_a - mean_b
    product = _half(covariance_a).T @ _half(covariance_b)
    overlap = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    return max(
        0.0, float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
    )


def _half(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """L with L L^T = covariance and r its numerical rank: the root of a zero that was rounded to
    1e-16 would count as 1e-8.
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])
