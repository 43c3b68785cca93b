"""95 % confidence intervals of measures, which treat images as independent draws.

A measure `name` has its interval [low, high] under the key `name` + "_interval".
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

LEVEL = 0.95
Z = 1.959963984540054  # quantile (1 + LEVEL) / 2 of the normal distribution
SUFFIX = "_interval"
MEANING = (
    "95 %: Wilson's for shares of images, Student's t over images for means, a jackknife over "
    "records for kernel distances"
)

Interval = tuple[float, float]


def wilson(share: float, count: int) -> Interval:
    """Wilson's score interval of a share among `count` images (Wilson 1927); (0, 1) without any.

    Unlike share +- 1.96 standard errors it has a width at shares of 0 and 1 and stays in [0, 1].
    """
    if not count:
        return 0.0, 1.0
    scale = 1 / (1 + Z**2 / count)
    centre = scale * (share + Z**2 / (2 * count))
    half = scale * Z * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    # at a share of 0 or 1 rounding would leave a margin of 1e-17
    low = 0.0 if share == 0 else max(0.0, float(centre - half))
    return low, 1.0 if share == 1 else min(1.0, float(centre + half))


def student(values: Float[np.ndarray, " n"]) -> Interval | None:
    """Interval of the mean of the distribution that the values come from, by Student's t. None for
    fewer than two values, or if one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * standard_error(values)
    mean = values.mean(dtype=np.float64)
    return float(mean - half), float(mean + half)


def standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Standard error of the mean of independent values."""
    return float(values.std(ddof=1, dtype=np.float64) / np.sqrt(len(values)))


def normal(value: float, error: float) -> Interval:
    """Interval of a value with a normal error of that standard deviation."""
    return value - Z * error, value + Z * error


def share(name: str, hits: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Share of hits (in [0, 1]; fractions where ties are broken in expectation), with its
    interval.
    """
    value = float(hits.mean(dtype=np.float64))
    return {name: value, name + SUFFIX: [*wilson(value, len(hits))]}


def mean(
    name: str,
    values: Float[np.ndarray, " n"],
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, Any]:
    """Mean of the values, which lie within the bounds, with its interval where there is one."""
    interval = student(values)
    value = {name: float(values.mean(dtype=np.float64))}
    return value | ({name + SUFFIX: np.clip(interval, *bounds).tolist()} if interval else {})
