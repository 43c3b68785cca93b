"""Measures from k-nearest-neighbour balls around features, in float64: precision and recall
(Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
arXiv:2002.09797).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import blocks, check_pair

# squared distances closer than this, relative to the largest squared norm, count as equal
_TIE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """Fractions of images; density is 1 in expectation for two sets of one distribution.

    Attributes:
      precision: generated images inside the ball of a real one.
      recall: real images inside the ball of a generated one.
      density: mean number of balls of real images around a generated one, divided by k.
      coverage: real images with a generated one in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m e"],
    *,
    k: int,
    closed: bool = False,
    block: int = 4096,
) -> Neighbourhoods:
    """Measures with balls that reach up to the k-th nearest other image of the same set.

    The balls exclude that distance (`<`), as in `prdc` of Naeem et al. With `closed` those of
    precision and recall include it (`<=`), as in the code of Kynkäänniemi et al. and in
    guided-diffusion. The two differ on ties only, such as copies of an image: with k = 1 a real
    image that is there twice has an empty open ball. A duplicate counts as a neighbour at distance
    0 in both.

    The papers use k = 3 for precision and recall and k = 5 for density and coverage. Only `block` x
    `block` distances are in memory at a time. UserError unless both sets have more than k images
    with finite features of one width.
    """
    if k < 1:
        raise UserError(f"neighbours are counted from k = 1, got {k}")
    real, generated = check_pair(real, generated, ("real images", "generated images"), least=k + 1)
    centre = real.mean(axis=0)
    real, generated = real - centre, generated - centre  # short vectors lose fewer digits
    tie = _TIE * max(np.einsum("nd,nd->n", x, x).max() for x in (real, generated))
    real_radius, generated_radius = (_squared_radii(x, k, block) for x in (real, generated))
    margin = tie if closed else -tie
    balls = np.zeros(len(generated), np.int64)  # number of real balls around each generated image
    precise = np.zeros(len(generated), bool)
    recalled, covered = np.zeros((2, len(real)), bool)
    for i in blocks(len(real), block):
        for j in blocks(len(generated), block):
            distance = _squared_distances(real[i], generated[j])
            inside = distance < real_radius[i, None] - tie
            balls[j] += inside.sum(axis=0)
            covered[i] |= inside.any(axis=1)
            precise[j] |= (distance < real_radius[i, None] + margin).any(axis=0)
            recalled[i] |= (distance < generated_radius[j] + margin).any(axis=1)
    return Neighbourhoods(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def _squared_radii(x: Float[np.ndarray, "n d"], k: int, block: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    nearest = np.full((len(x), k + 1), np.inf)

    def update(rows, distance):
        both = np.concatenate([nearest[rows], distance], axis=1)
        nearest[rows] = np.partition(both, k, axis=1)[:, : k + 1]

    for i in blocks(len(x), block):
        for j in blocks(i.stop, block):  # each pair once
            distance = _squared_distances(x[i], x[j])
            update(i, distance)
            if i != j:
                update(j, distance.T)
    return nearest.max(axis=1)


def _squared_distances(
    x: Float[np.ndarray, "p d"], y: Float[np.ndarray, "q d"]
) -> Float[np.ndarray, "p q"]:
    return np.einsum("pd,pd->p", x, x)[:, None] + np.einsum("qd,qd->q", y, y) - 2 * (x @ y.T)
