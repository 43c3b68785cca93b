"""The examples that one device, or one micro-batch, has of a global batch.

A training step is `step(state, frozen, batch, key, axis) -> (state, metrics)`, where `axis` is the
name of the devices that share the batch, over which it averages. An example's random numbers come
from its index in the global batch, and so do not depend on the number of devices.
"""

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vqd_jax.core.shapes import PRNGKey, PRNGKeys

AXIS = "batch"  # the name of the devices under pmap
Tree = TypeVar("Tree")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["index"],
    meta_fields=["total", "axis", "micro_batches"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples of a global batch of `total`.

    Attributes:
      index: positions in the global batch.
      axis: name of the devices that share the batch; None for one device, or where the compiler
        partitions the step.
      micro_batches: the number of micro-batches of this device, of which these rows are one.
    """

    index: Int[Array, " b"]
    total: int
    axis: str | None = None
    micro_batches: int = 1

    @classmethod
    def of_device(cls, count: int, axis: str | None = None) -> "Rows":
        """All `count` rows of this device."""
        if axis is None:
            return cls(jnp.arange(count), count)
        first = jax.lax.axis_index(axis) * count
        return cls(first + jnp.arange(count), count * jax.lax.axis_size(axis), axis)

    def keys(self, key: PRNGKey) -> PRNGKeys:
        """A key for each example."""
        return jax.vmap(functools.partial(jax.random.fold_in, key))(self.index)


def mean(tree: Tree, axis: str | None) -> Tree:
    """The average over the devices `axis`, or the tree itself without an axis."""
    return tree if axis is None else jax.lax.pmean(tree, axis)
