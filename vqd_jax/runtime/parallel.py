"""How training runs on several devices: `replicated` by pmap, or on a `mesh`."""

import math
from typing import Any

import jax

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.mesh import Sharded
from vqd_jax.runtime.replicated import Pmap

Parallelism = Pmap | Sharded


def parallelism(
    *,
    strategy: str = "pmap",
    devices: int = 0,
    fsdp: int = 1,
    tensor: int = 1,
    on: tuple[jax.Device, ...] = (),
) -> Parallelism:
    """The section `parallel` of the config.

    strategy: "pmap", data-parallel with explicit collectives, or "mesh", one program over a mesh of
      data x fsdp x tensor.
    devices: of each process; 0 uses all. fsdp, tensor: sizes of those axes of the mesh.
    on: devices to compile for, which need not be here, instead of those of the processes.
    """
    if strategy not in ("pmap", "mesh"):
        raise UserError(f"parallel.strategy must be pmap or mesh, got {strategy!r}")
    most = len(on) or jax.local_device_count()
    if not 0 <= devices <= most:
        raise UserError(
            f"parallel.devices must be in 0..{most}, the devices of this process, got {devices}"
        )
    devices = devices or most
    on = on[:devices]
    if strategy == "mesh":
        return Sharded(devices=devices, fsdp=fsdp, tensor=tensor, on=on)
    if (fsdp, tensor) != (1, 1):
        raise UserError(
            "parallel.fsdp and parallel.tensor are axes of a mesh: they need parallel.strategy mesh"
        )
    return Pmap(devices=devices, on=on)


def bytes_per_device(tree: Any) -> int:
    """Of the results of `device_put` and `shard`, or of their shapes."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(size, jax.tree.leaves(tree)))
