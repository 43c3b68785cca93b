"""Coefficients of the exact posterior p(z_s | z_t) of any stride, so that sampling needs no
(b, n, k + 1) array.

[MASK] stays, or becomes a code drawn from the model's p(x_0) or a uniform one. A code v stays, is
redrawn from p, or is replaced by a uniform code. The probabilities are linear in p_v and 1 - p_v;
P(not masked) cancels from those of codes. `MaskAndReplace.reverse` is the same distribution in
dense log space, the reference.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from vqd_jax.diffusion.process import MaskAndReplace

PerCall = Float[np.ndarray, " calls"] | Float[Array, "..."]
Stride = Int[np.ndarray, " calls"]


class PosteriorCoefficients(NamedTuple):
    """Coefficients of steps t -> s; float64 (calls,) from `posterior_coefficients`.

    A token that is [MASK]: P(stays [MASK]) = stay_masked; otherwise it becomes a code from p with
    probability from_model, else a uniform code.

    A token with the code v first becomes [MASK] with probability remask; otherwise
      P(keeps v) = keep_same p_v + keep_other (1 - p_v),
      P(a code from p, not v) = redraw (1 - p_v),
      P(a uniform code, not v) = replace_same p_v + replace_other (1 - p_v).
    """

    stay_masked: PerCall
    from_model: PerCall
    keep_same: PerCall
    keep_other: PerCall
    redraw: PerCall
    replace_same: PerCall
    replace_other: PerCall
    remask: PerCall


def posterior_coefficients(
    process: MaskAndReplace,
    s: Stride,
    t: Stride,
    remasking: Float[np.ndarray, " calls"] | float = 0.0,
) -> PosteriorCoefficients:
    """The coefficients of each step from t to s < t.

    `remasking` in [0, 1] is the fraction of the largest rate min(1, masked_s / unmasked_t) at which
    codes return to [MASK]. Every fraction keeps q(z_s | x_0) (Wang et al. 2025, here for any
    mask-and-replace schedule).
    """
    unmasked, intact, k = np.asarray(process.unmasked), np.asarray(process.intact), process.k
    unmasked_s, unmasked_t, intact_s, intact_t = unmasked[s], unmasked[t], intact[s], intact[t]
    remask = remasking * np.minimum(1, _divide(1 - unmasked_s, unmasked_t, where_zero=1.0))
    unmask = _divide(unmasked_s - (1 - remask) * unmasked_t, 1 - unmasked_t)
    # P(replaced between s and t); one minus a quotient would lose digits
    lost = _divide(intact_s - intact_t, intact_s)
    same = lambda intact, replaced: intact + replaced / k  # P(the same code before and after)
    same_st, same_0s = same(1 - lost, lost), same(intact_s, 1 - intact_s)
    same_0t = same(intact_t, 1 - intact_t)
    given_other = lambda p: _divide(p, 1 - intact_t)  # given that z_t is not x_0
    replaces = intact_t < 1
    replaced_twice = lost * (1 - intact_s) * (k - 1)
    return PosteriorCoefficients(
        stay_masked=1 - unmask,
        from_model=intact_s,
        keep_same=np.where(replaces, same_st * same_0s / same_0t, 1.0),
        keep_other=np.where(replaces, given_other(same_st * (1 - intact_s)), 1.0),
        redraw=given_other(lost * intact_s),
        replace_same=np.where(replaces, replaced_twice / k**2 / same_0t, 0.0),
        replace_other=given_other(replaced_twice / k),
        remask=remask,
    )


def _divide(x: np.ndarray, y: np.ndarray, where_zero: float = 0.0) -> np.ndarray:
    """x / y, and `where_zero` where y is 0."""
    out = np.full(np.broadcast_shapes(x.shape, y.shape), where_zero)
    return np.divide(x, y, out=out, where=y > 0)
