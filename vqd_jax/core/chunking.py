"""Large batches in parts on a CPU, so that what one step writes is still in the cache when the next
one reads it.
"""

from collections.abc import Callable
from typing import Any

import jax

CACHED = 2**20  # logits; the best of 2**17 to 2**23 for three sizes of network on two cores


def map_chunks(f: Callable[..., Any], *rows: Any, elements: int, least: int = 1) -> Any:
    """f(*rows), where row i of the result depends on row i of the arguments alone and has
    `elements` logits.

    On a CPU f gets as many rows as the cache has room for, but `least` if it can be; elsewhere all
    of them.
    """
    b = jax.tree.leaves(rows)[0].shape[0]
    size = max(
        (c for c in range(1, b + 1) if b % c == 0 and (c * elements <= CACHED or c <= least)),
        default=1,
    )
    if size == b:
        return f(*rows)

    def parts(*rows: Any) -> Any:
        cut = jax.tree.map(lambda x: x.reshape(b // size, size, *x.shape[1:]), rows)
        out = jax.lax.map(lambda part: f(*part), cut)
        return jax.tree.map(lambda x: x.reshape(b, *x.shape[2:]), out)

    return jax.lax.platform_dependent(*rows, cpu=parts, default=f)
