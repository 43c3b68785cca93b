"""Where to spend a number of calls: token counts that lose the least information, by dynamic
programming.

A call that reveals several tokens draws them as if they were independent. What is lost is the
cross-entropy that each would have gained by knowing those before it; the sum over calls is the
divergence of the samples from the model's own one-by-one order, so the best counts minimise it.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError

Cost = Float[np.ndarray, "n n_plus_1"]


def random_order_cost(entropy: Float[np.ndarray, " n"]) -> Cost:
    """cost[a, b]: nats lost when one call takes the known tokens from a to b in random order.

    entropy[i]: mean cross-entropy of a random masked token when i random ones are known, as `vqd
    plan` measures it.
    """
    n = len(entropy)
    total = np.append(0, np.cumsum(entropy))
    a, b = np.arange(n)[:, None], np.arange(n + 1)[None]
    return np.where(b > a, (b - a) * entropy[:, None] - (total[b] - total[a]), np.inf)


def fixed_order_cost(entropy: Float[np.ndarray, "n n"]) -> Cost:
    """The same for a fixed order: entropy[a, i] is that of the order's i-th token when its first a
    are known.
    """
    n = len(entropy)
    gain = np.where(
        np.arange(n)[None] >= np.arange(n)[:, None], entropy - np.diagonal(entropy)[None], 0
    )
    cost = np.concatenate([np.zeros((n, 1)), np.cumsum(gain, axis=1)], axis=1)
    return np.where(np.arange(n + 1)[None] > np.arange(n)[:, None], cost, np.inf)


def best_counts(cost: Cost, calls: int) -> tuple[tuple[int, ...], float]:
    """(tokens to reveal at each of `calls` calls, the nats that are lost), the smallest loss there
    is.
    """
    n = len(cost)
    if not 1 <= calls <= n:
        raise UserError(f"a plan for {n} tokens has 1..{n} calls, got {calls}")
    best, choice = (
        cost[0].copy(),
        [],
    )  # best[b]: least loss with b tokens known after the calls so far
    for _ in range(calls - 1):
        ways = best[:n, None] + cost  # from a known to b known
        choice.append(ways.argmin(0))
        best = ways.min(0)
    known = [n]
    for back in reversed(choice):
        known.append(int(back[known[-1]]))
    known.append(0)
    return tuple(int(c) for c in -np.diff(known))[::-1], float(best[n])
