"""Token counts that lose the least information for a number of calls, by dynamic programming.

A call that reveals several tokens draws them as if they were independent. Each of them loses the
cross-entropy it would have gained from the ones before it. The sum over calls is the KL divergence
of the samples from one-token-a-call sampling in the same order, so the best counts minimise it.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError

Cost = Float[np.ndarray, "n n_plus_1"]


def reveal_cost(entropy: Float[np.ndarray, " n"] | Float[np.ndarray, "n n"]) -> Cost:
    """cost[a, b]: nats lost by a call that starts with a known tokens and ends with b.

    `entropy` is measured by `vqd plan`. For a random order, entropy[i] is the mean cross-entropy of
    a random masked token when i random ones are known. For a fixed order, entropy[a, i] is that of
    the order's i-th token when its first a are known.
    """
    return random_order_cost(entropy) if entropy.ndim == 1 else fixed_order_cost(entropy)


def random_order_cost(entropy: Float[np.ndarray, " n"]) -> Cost:
    """`reveal_cost` for a random order."""
    n = len(entropy)
    total = np.append(0, np.cumsum(entropy))
    a, b = np.arange(n)[:, None], np.arange(n + 1)[None]
    return np.where(b > a, (b - a) * entropy[:, None] - (total[b] - total[a]), np.inf)


def fixed_order_cost(entropy: Float[np.ndarray, "n n"]) -> Cost:
    """`reveal_cost` for a fixed order."""
    n = len(entropy)
    a, i = np.arange(n)[:, None], np.arange(n)[None]
    gain = np.where(i >= a, entropy - np.diagonal(entropy)[None], 0)
    cost = np.concatenate([np.zeros((n, 1)), np.cumsum(gain, axis=1)], axis=1)
    return np.where(np.arange(n + 1)[None] > a, cost, np.inf)


def best_counts(cost: Cost, calls: int) -> tuple[tuple[int, ...], float]:
    """(tokens to reveal at each of `calls` calls, nats lost) with the smallest loss."""
    n = len(cost)
    if not 1 <= calls <= n:
        raise UserError(f"a plan for {n} tokens has 1..{n} calls, got {calls}")
    best = cost[0].copy()  # best[b]: the least loss with b tokens known after the calls so far
    choice = []
    for _ in range(calls - 1):
        losses = best[:n, None] + cost  # from a known to b known
        choice.append(losses.argmin(0))
        best = losses.min(0)
    known = [n]
    for previous in reversed(choice):
        known.append(int(previous[known[-1]]))
    known.append(0)
    return tuple(int(count) for count in -np.diff(known))[::-1], float(best[n])
