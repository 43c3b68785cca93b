"""How one pure step runs on many devices: every device gets a slice of the batch, and the step's collectives do the rest.

A step is `step(state, frozen, batch, key, axis) -> (state, metrics)`; `axis` is the name to average over. Its randomness
comes from the index of an example in the global batch, so the numbers do not depend on how many devices share it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from vqd_jax.errors import UserError
from vqd_jax.shapes import PRNGKey, PRNGKeys

AXIS = "batch"


def example_keys(key: PRNGKey, rows: int, axis: str | None) -> PRNGKeys:
    """A key for each of this device's `rows` examples, by their place in the global batch."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(example_places(rows, axis)[0])


def example_places(rows: int, axis: str | None) -> tuple[Int[Array, " rows"], int]:
    """(the places of this device's `rows` examples in the global batch, the size of that batch)."""
    if axis is None:
        return jnp.arange(rows), rows
    return jax.lax.axis_index(axis) * rows + jnp.arange(rows), rows * jax.lax.axis_size(axis)


def mean(tree: Any, axis: str | None) -> Any:
    """The average over devices; the tree itself on one."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Data parallelism over the local devices and all processes.

    Attributes:
      strategy: "pmap", the replicated state with explicit collectives.
      devices: local devices to use; 0 for all.
    """

    strategy: str = "pmap"
    devices: int = 0

    def __post_init__(self):
        if self.strategy != "pmap":
            raise UserError(f"parallel.strategy must be 'pmap', got {self.strategy!r}")
        if self.devices < 0 or self.devices > jax.local_device_count():
            raise UserError(f"parallel.devices must lie in 0..{jax.local_device_count()}, the devices here, "
                            f"got {self.devices}")

    @property
    def count(self) -> int:
        return self.devices or jax.local_device_count()

    def check_batch(self, size: int) -> None:
        if size % (self.count * jax.process_count()):
            raise UserError(f"the batch size {size} must be a multiple of the {self.count * jax.process_count()} devices")

    def compile(self, step: Callable) -> Callable:
        """`(state, frozen, batch, key) -> (state, metrics)` on replicated state and sharded batch; donates the state."""
        devices = [d for process in range(jax.process_count()) for d in jax.local_devices(process)[:self.count]]
        return jax.pmap(functools.partial(step, axis=AXIS), axis_name=AXIS, devices=devices, in_axes=(0, 0, 0, None),
                        donate_argnums=0)

    def replicate(self, tree: Any) -> Any:
        """A copy on every local device."""
        devices = jax.local_devices()[:self.count]
        sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

        def copies(x):
            one = jnp.asarray(x)[None]
            return jax.make_array_from_single_device_arrays((len(devices), *one.shape[1:]), sharding,
                                                            [jax.device_put(one, d) for d in devices])

        return jax.tree.map(copies, tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, split over its devices: (rows, ...) -> (devices, rows / devices, ...)."""
        return jax.tree.map(lambda x: x.reshape(self.count, x.shape[0] // self.count, *x.shape[1:]), batch)

    def first(self, tree: Any) -> Any:
        """The first device's copy of a replicated tree."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)
