"""The exact posterior p(z_s | z_t) of any stride as branches per token, so that no (b, n, k + 1)
array is needed.

[MASK] stays or becomes a code: one of the model's p(x_0), or a uniform one. A code v is kept, jumps
to another code drawn from p, or wanders to another uniform code. The probabilities are linear in
p_v and 1 - p_v, and the unmasking cancels from those of codes. `MaskAndReplace.reverse` is the same
distribution in dense log space, the reference.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from vqd_jax.diffusion.process import MaskAndReplace

PerCall = Float[np.ndarray, " calls"] | Float[Array, "..."]


class Branches(NamedTuple):
    """Coefficients of steps t -> s, float64 (calls,) as `branches` makes them.

    [MASK]: `remains` it; else a code from p with probability `lands`, else a uniform code.
    Code v: P(keep) = keep_own p_v + keep_other (1 - p_v); P(jump) = jump (1 - p_v);
    P(wander) = wander_own p_v + wander_other (1 - p_v). Before all that it becomes [MASK] with
    probability `remasks`.
    """

    remains: PerCall
    lands: PerCall
    keep_own: PerCall
    keep_other: PerCall
    jump: PerCall
    wander_own: PerCall
    wander_other: PerCall
    remasks: PerCall


def branches(
    process: MaskAndReplace, s: np.ndarray, t: np.ndarray, remasking: np.ndarray | float = 0.0
) -> Branches:
    """Coefficients for each pair s < t of integers (calls,).

    `remasking` in [0, 1] (calls,) is the share of the largest rate min(1, mask_s / unmasked_t) at
    which codes return to [MASK]; every share leaves q(z_s | x_0) as it is (Wang et al. 2025, here
    for any mask-and-replace schedule).
    """
    unmasked, intact, k = np.asarray(process.unmasked), np.asarray(process.intact), process.k
    live_s, live_t, same_s, same_t = unmasked[s], unmasked[t], intact[s], intact[t]
    divide = lambda x, y: np.divide(
        x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape)), where=y > 0
    )
    remasks = remasking * np.minimum(
        1, np.divide(1 - live_s, live_t, out=np.ones_like(live_t), where=live_t > 0)
    )
    opens = divide(live_s - (1 - remasks) * live_t, 1 - live_t)
    lost = divide(
        same_s - same_t, same_s
    )  # replaced between s and t; not 1 - a quotient, which loses digits
    own = lambda same, lost: same + lost / k  # the same code at both ends
    replaces = same_t < 1
    other = lambda x: divide(x, 1 - same_t)  # given that z_t is not the x_0 it came from
    return Branches(
        remains=1 - opens,
        lands=same_s,
        keep_own=np.where(
            replaces, own(1 - lost, lost) * own(same_s, 1 - same_s) / own(same_t, 1 - same_t), 1.0
        ),
        keep_other=np.where(replaces, other(own(1 - lost, lost) * (1 - same_s)), 1.0),
        jump=other(lost * same_s),
        wander_own=np.where(
            replaces, lost * (1 - same_s) * (k - 1) / k**2 / own(same_t, 1 - same_t), 0.0
        ),
        wander_other=other(lost * (1 - same_s) * (k - 1) / k),
        remasks=remasks,
    )
