"""Data-parallel training by `jax.pmap`: every device has a replica of the state and computes a
slice of the batch; the step's own collectives average over the devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.runtime.devices import check_batch_size, devices_of_each_process
from vqd_jax.runtime.rows import AXIS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pmap:
    """A step on `devices` devices of every process, each with a replica of the state. With `on` it
    is compiled for these devices.
    """

    devices: int
    on: tuple[jax.Device, ...] = ()

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return len(self.on) or self.devices * jax.process_count()

    @property
    def replicas(self) -> int:
        """How often the step runs at the same time, each time on another slice of the batch."""
        return self.device_count

    @property
    def description(self) -> str:
        return f"{self.device_count} {jax.default_backend()} device(s)"

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the devices and their sizes."""
        return {AXIS: self.device_count}

    @functools.cached_property
    def _sharding(self) -> NamedSharding:
        """One row on each local device."""
        devices = np.array(self.on or jax.local_devices()[: self.devices])
        return NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(AXIS))

    def check_batch(self, size: int, micro_batches: int = 1) -> None:
        check_batch_size(size, self.device_count, micro_batches)

    def compile(self, step: Callable) -> Any:
        """`(state, frozen, batch, key) -> (state, metrics)`, for results of `device_put` and
        `shard`. Donates the state.
        """
        return jax.pmap(
            functools.partial(step, axis=AXIS),
            axis_name=AXIS,
            devices=self.on or devices_of_each_process(self.devices),
            in_axes=(0, 0, 0, None),
            donate_argnums=0,
        )

    def create(self, make: Callable[..., Any], *same: Any, placed: Any = ()) -> Any:
        """The tree `make(*same, *placed)` as `device_put` would place it, computed by each device
        for itself. Arguments in `placed` are results of `create` or `device_put`.
        """
        program = jax.pmap(
            lambda _, *arguments: make(*arguments),
            in_axes=(0, *[None] * len(same), *[0] * len(placed)),
            devices=jax.local_devices()[: self.devices],
        )
        return program(np.arange(self.devices), *same, *placed)

    def stored_like(self, shapes: Any) -> Any:
        """The `like` of `Checkpoints.restore` for a tree of these shapes, whose result `device_put`
        then places.
        """
        return shapes

    def device_put(self, tree: Any) -> Any:
        """A replica on every local device, along a new first axis."""

        def on_each_device(x: Any) -> jax.Array:
            row = np.asarray(x)[None]  # on a device, each shape would be a program to compile
            return jax.make_array_from_single_device_arrays(
                (self.devices, *row.shape[1:]),
                self._sharding,
                [jax.device_put(row, device) for device in self._sharding.mesh.devices],
            )

        return jax.tree.map(on_each_device, tree)

    def device_put_shapes(self, tree: Any) -> Any:
        """The shapes of `device_put`'s result, for a tree of arrays or shapes."""
        put = lambda x: jax.ShapeDtypeStruct(
            (self.devices, *x.shape), x.dtype, sharding=self._sharding
        )
        return jax.tree.map(put, tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, split over its devices: (b, …) -> (devices, b / devices, …)."""
        split = lambda x: x.reshape(self.devices, x.shape[0] // self.devices, *x.shape[1:])
        return jax.tree.map(split, batch)

    def shard_shapes(self, batch: Any) -> Any:
        """The shapes of `shard`'s result, for shapes of the global batch."""
        rows = lambda x: (x.shape[0] // self.device_count, *x.shape[1:])
        local = jax.tree.map(lambda x: jax.ShapeDtypeStruct(rows(x), x.dtype), batch)
        return self.device_put_shapes(local)

    def unreplicate(self, metrics: Any) -> Any:
        """The metrics of the first device, which need not have been computed yet."""
        return _first_row(self.local(metrics))

    def local(self, state: Any) -> Any:
        """The first device's replica of the state, not copied: its first axis has one row."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data, state)

    def to_store(self, state: Any) -> Any:
        """What `Checkpoints.save` takes for the state or a part of it."""
        return self.to_host(state)

    def to_host(self, state: Any) -> Any:
        """The state or a part of it as NumPy arrays; on a CPU they are views."""
        replica = self.local(state)
        for x in jax.tree.leaves(replica):
            x.copy_to_host_async()
        return jax.tree.map(lambda x: np.asarray(x).reshape(x.shape[1:]), replica)


_first_row = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))
