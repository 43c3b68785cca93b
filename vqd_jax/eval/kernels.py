"""Kernel distances: squared maximum mean discrepancies (MMD) of two sets of features, in float64.

The published KID uses the features of InceptionV3, the published CMMD the image embeddings of CLIP
ViT-L/14 at 336 px.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import blocks, check_pair, normalize

# the record of each row of both sets
Records = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]


def polynomial_mmd2(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], records: Records | None = None
) -> float:
    """The unbiased squared MMD with the kernel (x.y / d + 1)^3 of KID (Binkowski et al. 2018,
    arXiv:1801.01401); it can be negative.

    `records` name the record of each row of x and of y. The three means run over pairs of different
    records only, since rows of one record are not independent: with one row of x and one of y for
    each record this is the U-statistic of Gretton et al. 2012 (JMLR 13, eq. 4), which is unbiased
    however similar x_i and y_i are, and 0 for equal sets. Without `records` only pairs of a row
    with itself are left out, and x_i close to y_i give about -2 / n.

    UserError for fewer than 2 rows, numbers that are not finite, or widths that differ.
    """
    x, y = check_pair(x, y, ("the first set", "the second set"), least=2)
    of_x, of_y = _codes(len(x), len(y), records)
    mean_x, mean_y, mean_xy = (
        sums.sum() / max(counts.sum(), 1)
        for sums, counts in (
            _row_sums(x, x, of_x, of_x),
            _row_sums(y, y, of_y, of_y),
            _row_sums(x, y, of_x, of_y),
        )
    )
    return float(mean_x + mean_y - 2 * mean_xy)


def polynomial_mmd2_error(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    records: Records | None = None,
    *,
    most: int = 10_000,
) -> float:
    """Standard error of `polynomial_mmd2` by a jackknife that leaves out one record at a time.

    It is consistent where the two distributions differ, and too large rather than too small where
    they are equal. A bootstrap would draw pairs of copies, which the unbiased statistic must not
    have. Of more than `most` rows evenly spaced ones are used, and the error is scaled to all.
    """
    x, y = check_pair(x, y, ("the first set", "the second set"), least=2)
    of_x, of_y = _codes(len(x), len(y), records)
    units = len(np.union1d(of_x, of_y))
    kept_x, kept_y = (np.linspace(0, len(z) - 1, min(most, len(z))).astype(int) for z in (x, y))
    x, y, (of_x, of_y) = (
        x[kept_x],
        y[kept_y],
        _codes(len(kept_x), len(kept_y), (of_x[kept_x], of_y[kept_y])),
    )
    count = int(max(of_x.max(), of_y.max())) + 1
    without = (
        _means_without(x, x, of_x, of_x, count)
        + _means_without(y, y, of_y, of_y, count)
        - 2 * _means_without(x, y, of_x, of_y, count)
    )
    in_x, in_y = (np.bincount(of, minlength=count) > 0 for of in (of_x, of_y))
    variance = 0.0
    for stratum in (in_x & in_y, in_x & ~in_y, ~in_x & in_y):
        if stratum.any():
            variance += (stratum.sum() - 1) * np.var(without[stratum])
    return float(np.sqrt(variance * count / units))


def _means_without(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    of_x: Int[np.ndarray, " n"],
    of_y: Int[np.ndarray, " m"],
    count: int,
) -> Float[np.ndarray, " count"]:
    """The mean kernel over pairs of different records, without each of `count` records in turn."""
    by_record = lambda of, values: np.bincount(of, weights=values, minlength=count)
    sums, pairs = (by_record(of_x, values) for values in _row_sums(x, y, of_x, of_y))
    columns = (sums, pairs)
    if x is not y:
        columns = tuple(by_record(of_y, values) for values in _row_sums(y, x, of_y, of_x))
    # no pair lies within a record, so none is subtracted twice
    return (sums.sum() - sums - columns[0]) / np.maximum(pairs.sum() - pairs - columns[1], 1)


def _codes(
    n: int, m: int, records: Records | None = None
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """The records as integers; without any, each row has its own."""
    if records is None:
        return np.arange(n), n + np.arange(m)
    codes = np.unique(np.concatenate([*records]), return_inverse=True)[1]
    return codes[: len(records[0])], codes[len(records[0]) :]


def _row_sums(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    of_x: Int[np.ndarray, " n"],
    of_y: Int[np.ndarray, " m"],
    block: int = 1024,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row of x, the sum of its kernel with the rows of y of other records, and their
    number.
    """
    sums, counts = np.zeros(len(x)), np.zeros(len(x), int)
    for rows in blocks(len(x), block):
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        other = of_x[rows, None] != of_y[None]
        sums[rows], counts[rows] = np.where(other, kernel, 0).sum(1), other.sum(1)
    return sums, counts


def kid_subsets(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    records: Records | None = None,
) -> Float[np.ndarray, " subsets"]:
    """`polynomial_mmd2` of random subsets, each drawn without replacement; KID is their mean.

    If both sets have one image of each record, a subset has the same records of both. UserError if
    a set is smaller than a subset.
    """
    if subsets < 1 or not 2 <= subset_size <= min(len(a), len(b)):
        raise UserError(
            "KID needs subsets >= 1 and 2 <= subset_size <= the number of images, got "
            f"subsets={subsets}, subset_size={subset_size} with {len(a)} and {len(b)} images"
        )
    a, b = check_pair(a, b, ("the first set", "the second set"))
    of_a, of_b = _codes(len(a), len(b), records)
    random = np.random.default_rng(seed)
    order_a, order_b = np.argsort(of_a, kind="stable"), np.argsort(of_b, kind="stable")
    paired = np.array_equal(of_a[order_a], of_b[order_b]) and len(np.unique(of_a)) == len(of_a)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        first = random.choice(len(a), subset_size, replace=False)
        if paired:
            return order_a[first], order_b[first]
        return first, random.choice(len(b), subset_size, replace=False)

    return np.array(
        [
            polynomial_mmd2(a[i], b[j], (of_a[i], of_b[j]))
            for i, j in (draw() for _ in range(subsets))
        ]
    )


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
