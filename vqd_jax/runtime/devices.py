"""The devices of this process and of all, the platform that programs are built for, and functions
whose rows are shared by several devices: sampling and evaluation, where weights are replicated.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.core.errors import UserError

Devices = tuple[jax.Device, ...]
Tree = TypeVar("Tree")
AXIS = "rows"
_platform: contextvars.ContextVar[str] = contextvars.ContextVar("platform")


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what programs are built for. It is that of the devices here, except
    within `building_for`.
    """
    return _platform.get(None) or jax.default_backend()


@contextlib.contextmanager
def building_for(platform: str) -> Iterator[None]:
    """Within it, programs are built for a platform whose devices need not be here."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def has_fused_attention() -> bool:
    """Whether cuDNN has kernels of attention for the GPUs that programs are built for: NVIDIA's
    since Ampere.
    """
    if _platform.get(None):
        return True
    major = getattr(jax.devices()[0], "compute_capability", "0").partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def local_devices(rows: int) -> Devices:
    """The devices of this process, at most one for each row."""
    return tuple(jax.local_devices()[: max(rows, 1)])


def all_devices() -> Devices:
    """The devices of all processes. Every process must call a function that runs on them, in the
    same order and with the same arguments.
    """
    return tuple(jax.devices())


def devices_of_each_process(count: int) -> list[jax.Device]:
    """The first `count` devices of every process."""
    processes = range(jax.process_count())
    return [device for process in processes for device in jax.local_devices(process)[:count]]


def check_batch_size(size: int, devices: int, micro_batches: int) -> None:
    """UserError unless `devices` can share a batch, each with that many micro-batches."""
    if size % (devices * micro_batches):
        accumulate = f", times accumulate, {micro_batches}" if micro_batches > 1 else ""
        raise UserError(
            f"the batch size {size} must be a multiple of the {devices} devices that share "
            f"it{accumulate}"
        )


def replicate(tree: Tree, devices: Devices) -> Tree:
    """The tree, replicated on each of the devices."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    put = lambda x: jax.make_array_from_callback(
        np.shape(x), sharding, lambda index: np.asarray(x)[index]
    )
    return jax.tree.map(put, tree)


def map_rows(function: Callable[..., Tree], devices: Devices, replicated: Any, *rows: Any) -> Tree:
    """`function(replicated, *rows)` with `rows` sharded over `devices`, and the result replicated.
    To be called within jit.

    Rows lie along the first axis of every array in `rows` and in the result. If the devices do not
    divide them, the last row is computed more than once.
    """
    if len(devices) == 1:
        return function(replicated, *rows)
    mesh, count = Mesh(np.array(devices), (AXIS,)), len(jax.tree.leaves(rows)[0])
    padding = -count % len(devices)
    if padding:
        index = jnp.minimum(jnp.arange(count + padding), count - 1)
        rows = jax.tree.map(lambda x: x[index], rows)
    sharded = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), *(PartitionSpec(AXIS) for _ in rows)),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    finish = lambda x: jax.lax.with_sharding_constraint(x[:count], everywhere)
    return jax.tree.map(finish, sharded(replicated, *rows))
