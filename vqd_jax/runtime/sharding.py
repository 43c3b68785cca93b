"""How one pure step runs on many devices: every device gets a slice of the batch, and the step's
collectives do the rest.

A step is `step(state, frozen, batch, key, axis) -> (state, metrics)`; `axis` is the name to average
over. Its randomness comes from the place of an example in the global batch, so the numbers do not
depend on how many devices share it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import PRNGKey, PRNGKeys

AXIS = "batch"
ROWS = ("data", "fsdp")  # the axes of the mesh over which a batch is cut


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["place"], meta_fields=["total", "axis", "parts"]
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Which examples of the global batch of `total` these are.

    `place` int (b,): where they stand in it. `axis`: the name of the devices that share it, None if
    they are one or if the compiler shares out the work. `parts`: of how many parts of this device's
    rows they are one.
    """

    place: Any
    total: int
    axis: str | None = None
    parts: int = 1

    @classmethod
    def here(cls, count: int, axis: str | None = None) -> "Rows":
        """All `count` rows of this device."""
        first = 0 if axis is None else jax.lax.axis_index(axis) * count
        return cls(
            first + jnp.arange(count),
            count * (1 if axis is None else jax.lax.axis_size(axis)),
            axis,
        )

    def keys(self, key: PRNGKey) -> PRNGKeys:
        """A key for each example."""
        return jax.vmap(functools.partial(jax.random.fold_in, key))(self.place)


def mean(tree: Any, axis: str | None) -> Any:
    """The average over devices; the tree itself on one."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


Devices = tuple[Any, ...]


def local_devices(rows: int) -> Devices:
    """The devices of this process that can share so many rows."""
    return tuple(jax.local_devices()[: max(rows, 1)])


def all_devices() -> Devices:
    """The devices of all processes: each must call, in the same order, what they share, with equal
    arguments.
    """
    return tuple(jax.devices())


def replicate(tree: Any, devices: Devices) -> Any:
    """The tree, whole on each of the devices."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    put = lambda x: jax.make_array_from_callback(
        np.shape(x), sharding, lambda index: np.asarray(x)[index]
    )
    return (
        jax.device_put(tree, sharding) if sharding.is_fully_addressable else jax.tree.map(put, tree)
    )


def map_rows(function: Callable, devices: Devices, whole: Any, *rows: Any) -> Any:
    """`function(whole, *rows)`, the devices of which each does its part of the rows, as it would
    alone; all have the result. Within jit.

    The rows are along the first axis of every array in `rows` and in the result. Where they do not
    divide, the last one is done again.
    """
    if len(devices) == 1:
        return function(whole, *rows)
    mesh, count = Mesh(np.array(devices), (AXIS,)), len(jax.tree.leaves(rows)[0])
    every = jnp.minimum(jnp.arange(count + -count % len(devices)), count - 1)
    padded = jax.tree.map(lambda x: x if len(every) == count else x[every], rows)
    specs = (PartitionSpec(), *(PartitionSpec(AXIS) for _ in rows))
    out = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
    )(whole, *padded)
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x[:count], NamedSharding(mesh, PartitionSpec())),
        out,
    )


def parallelism(
    *, strategy: str = "pmap", devices: int = 0, fsdp: int = 1, tensor: int = 1
) -> "Pmap | Sharded":
    """How a step runs: the section `parallel` of the config.

    `strategy`: "pmap", data parallel with explicit collectives, or "mesh", one program over a mesh
    of data x fsdp x tensor.
    `devices`: of this process; 0 for all. `fsdp`, `tensor`: sizes of those axes of the mesh.
    """
    if strategy not in ("pmap", "mesh"):
        raise UserError(f"parallel.strategy must be pmap or mesh, got {strategy!r}")
    if devices < 0 or devices > jax.local_device_count():
        raise UserError(
            f"parallel.devices must lie in 0..{jax.local_device_count()}, the devices here, got "
            f"{devices}"
        )
    devices = devices or jax.local_device_count()
    if strategy == "mesh":
        return Sharded(devices=devices, fsdp=fsdp, tensor=tensor)
    if (fsdp, tensor) != (1, 1):
        raise UserError(
            "parallel.fsdp and parallel.tensor are axes of a mesh: they need parallel.strategy mesh"
        )
    return Pmap(devices=devices)


def _devices(count: int) -> list[Any]:
    """`count` devices of each process."""
    return [d for process in range(jax.process_count()) for d in jax.local_devices(process)[:count]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pmap:
    """A copy of the state on each of `devices` devices of every process, and a slice of the batch."""

    devices: int

    @property
    def count(self) -> int:
        """Devices of all processes."""
        return self.devices * jax.process_count()

    @property
    def replicas(self) -> int:
        """How many times the step runs, each time on its own part of the batch."""
        return self.count

    @property
    def text(self) -> str:
        return f"{self.count} {jax.default_backend()} device(s)"

    @property
    def axes(self) -> dict[str, int]:
        """The one axis over which the devices lie, and its size."""
        return {AXIS: self.devices * jax.process_count()}

    @functools.cached_property
    def _each(self) -> NamedSharding:
        """One row on each local device."""
        return NamedSharding(
            Mesh(np.array(jax.local_devices()[: self.devices]), (AXIS,)), PartitionSpec(AXIS)
        )

    def check_batch(self, size: int, parts: int = 1) -> None:
        _check_batch(size, self.count, parts)

    def compile(self, step: Callable) -> Callable:
        """`(state, frozen, batch, key) -> (state, metrics)` on what `place` and `shard` return;
        donates the state.
        """
        return jax.pmap(
            functools.partial(step, axis=AXIS),
            axis_name=AXIS,
            devices=_devices(self.devices),
            in_axes=(0, 0, 0, None),
            donate_argnums=0,
        )

    def place(self, tree: Any) -> Any:
        """A copy on every local device."""

        def on_each_device(x):
            one = np.asarray(x)[
                None
            ]  # not on the device, where each shape would be a program to compile
            return jax.make_array_from_single_device_arrays(
                (self.devices, *one.shape[1:]),
                self._each,
                [jax.device_put(one, d) for d in self._each.mesh.devices],
            )

        return jax.tree.map(on_each_device, tree)

    def placed(self, tree: Any) -> Any:
        """What `place` returns, as shapes of a tree of arrays or shapes."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.devices, *x.shape), x.dtype, sharding=self._each),
            tree,
        )

    def sharded(self, batch: Any) -> Any:
        """What `shard` returns, as shapes of the whole batch's."""
        rows = lambda x: x.shape[0] // self.devices // jax.process_count()
        return self.placed(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows(x), *x.shape[1:]), x.dtype), batch)
        )

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, split over its devices: (rows, ...) -> (devices, rows / devices,
        ...).
        """
        return jax.tree.map(
            lambda x: x.reshape(self.devices, x.shape[0] // self.devices, *x.shape[1:]), batch
        )

    def first(self, tree: Any) -> Any:
        """The first device's copy of a placed tree, or of the metrics."""
        return _without_first_axis(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))

    def host(self, tree: Any) -> Any:
        """NumPy copies of what `first` gives."""
        return jax.device_get(tree)


_without_first_axis = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))


# Which axes of a parameter are cut, by the end of its path (the same for its moving average and the
# optimizer's moments).
# Kernels that widen are cut by output over `tensor`, those that come after them by input (Shoeybi
# et al. 2019); the other
# axis is cut over `fsdp`. An axis that does not divide stays whole, as do embeddings, which are
# small and read by index.
RULES = (
    (
        r"(qkv|self_qkv|kv|cross_kv|q|cross_q|query|key|value|mlp_in|linear|head)/kernel$",
        ("fsdp", "tensor"),
    ),
    (
        r"(self_attention/out|cross_attention/out|attention/out|self_out|cross_out|mlp_out)/kernel$",
        ("tensor", "fsdp"),
    ),
    (r"(mlp_in|qkv|self_qkv)/bias$", ("tensor",)),
    (r"kernel$", ("fsdp", "tensor")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """One program over all devices, jit on a mesh: the batch is cut over data x fsdp, the state by
    RULES over fsdp and tensor.
    """

    devices: int
    fsdp: int = 1
    tensor: int = 1
    replicas = 1  # of the step: one program has the whole batch

    def __post_init__(self):
        if min(self.fsdp, self.tensor) < 1 or self.count % (self.fsdp * self.tensor):
            raise UserError(
                f"parallel.fsdp x parallel.tensor must divide the {self.count} devices, got "
                f"{self.fsdp} x {self.tensor}"
            )

    @property
    def count(self) -> int:
        """Devices of all processes."""
        return self.devices * jax.process_count()

    @property
    def text(self) -> str:
        return (
            "a mesh of "
            f"{' x '.join(f'{size} {name}' for name, size in self.mesh.shape.items())} "
            f"{jax.default_backend()} devices"
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        shape = self.count // (self.fsdp * self.tensor), self.fsdp, self.tensor
        return Mesh(np.array(_devices(self.devices)).reshape(shape), ("data", "fsdp", "tensor"))

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the mesh and their sizes."""
        return dict(self.mesh.shape)

    @property
    def _rows(self) -> NamedSharding:
        """How a batch is cut."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    def check_batch(self, size: int, parts: int = 1) -> None:
        _check_batch(size, self.count // self.tensor, parts)

    def compile(self, step: Callable) -> Callable:
        """`(state, frozen, batch, key) -> (state, metrics)` on what `place` and `shard` return;
        donates the state.
        """

        def program(state, frozen, batch, key):
            with nn.intercept_methods(self._cut_rows):
                state, metrics = step(state, frozen, batch, key)
            return jax.lax.with_sharding_constraint(state, self.shardings(state)), metrics

        return jax.jit(program, donate_argnums=0)

    def _cut_rows(
        self, method: Callable, arguments: tuple, options: dict[str, Any], context: Any
    ) -> Any:
        """A layer's result, cut by rows as the batch is. Left alone, the compiler would cut it over
        `fsdp` as the layer's kernel is, and every device would compute all rows.
        """
        out = method(*arguments, **options)
        if (
            not isinstance(out, jax.Array)
            or out.ndim < 3
            or out.shape[0] % math.prod(self.mesh.shape[axis] for axis in ROWS)
        ):
            return out
        spec = PartitionSpec(ROWS, *[PartitionSpec.UNCONSTRAINED] * (out.ndim - 1))
        return jax.lax.with_sharding_constraint(out, NamedSharding(self.mesh, spec))

    def shardings(self, tree: Any) -> Any:
        """Where each leaf of a tree of arrays or shapes goes."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: NamedSharding(self.mesh, self.spec(path, np.shape(x))), tree
        )

    def spec(self, path: Any, shape: tuple[int, ...]) -> PartitionSpec:
        """Over which axis of the mesh each axis of an array at that path is cut."""
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
        cut = (
            (None,) * (len(shape) - len(axes)) + tuple(axes)
            if len(axes) <= len(shape)
            else (None,) * len(shape)
        )
        return PartitionSpec(
            *(
                axis if axis and size % self.mesh.shape[axis] == 0 else None
                for axis, size in zip(cut, shape)
            )
        )

    def place(self, tree: Any) -> Any:
        """Every process has the whole tree; each device gets its part."""
        put = lambda x, sharding: jax.make_array_from_callback(
            np.shape(x), sharding, lambda index: np.asarray(x)[index]
        )
        return jax.tree.map(put, tree, self.shardings(tree))

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """This process's rows as its part of the global batch."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, x), batch)

    def placed(self, tree: Any) -> Any:
        """What `place` returns, as shapes of a tree of arrays or shapes."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            tree,
            self.shardings(tree),
        )

    def sharded(self, batch: Any) -> Any:
        """What `shard` returns, as shapes of the whole batch's."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows), batch
        )

    def first(self, tree: Any) -> Any:
        """The tree itself: there is only one."""
        return tree

    def host(self, tree: Any) -> Any:
        """NumPy copies of the whole arrays, in every process: all of them must call it."""
        return (
            jax.device_get(tree)
            if jax.process_count() == 1
            else multihost_utils.process_allgather(tree, tiled=True)
        )


def bytes_on_a_device(tree: Any) -> int:
    """Of a tree as `place` and `shard` return it, or of its shapes as `placed` and `sharded` do."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _check_batch(size: int, devices: int, parts: int) -> None:
    if size % (devices * parts):
        times = f", times accumulate, {parts}" if parts > 1 else ""
        raise UserError(
            f"the batch size {size} must be a multiple of the {devices} devices that share "
            f"it{times}"
        )
