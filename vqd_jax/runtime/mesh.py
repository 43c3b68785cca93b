"""Training by one `jax.jit` program over a mesh of data x fsdp x tensor: the batch is sharded over
data x fsdp, the state by RULES over fsdp and tensor. The compiler inserts the collectives.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.devices import check_batch_size, devices_of_each_process

ROWS = ("data", "fsdp")  # the axes over which a batch is sharded

# The axes over which a parameter is sharded, by the end of its path, which its moving average and
# its optimizer moments share. Kernels that widen are sharded by output over `tensor`, the kernels
# that follow them by input (Shoeybi et al. 2019); the other axis is sharded over `fsdp`. An axis
# that does not divide is replicated, as are embeddings, which are small and read by index.
RULES = (
    (
        r"(qkv|self_qkv|kv|cross_kv|q|cross_q|query|key|value|mlp_in|linear)/kernel$",
        ("fsdp", "tensor"),
    ),
    (
        r"(self_attention/out|cross_attention/out|attention/out|self_out|cross_out|mlp_out)/kernel$",
        ("tensor", "fsdp"),
    ),
    (r"(mlp_in|qkv|self_qkv)/bias$", ("tensor",)),
    # The head has a column for each code: with 2,887 of them, the compiler of a TPU v6e refuses to
    # scatter its gradient.
    (r"head/kernel$", ()),
    (r"kernel$", ("fsdp", "tensor")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """A step on a mesh of `devices` devices of every process. `fsdp` and `tensor` are the sizes of
    those axes; `data` has the rest. With `on` it is compiled for these devices.
    """

    devices: int
    fsdp: int = 1
    tensor: int = 1
    on: tuple[jax.Device, ...] = ()
    replicas = 1  # of the step: one program computes the whole batch

    def __post_init__(self):
        if min(self.fsdp, self.tensor) < 1 or self.device_count % (self.fsdp * self.tensor):
            raise UserError(
                f"parallel.fsdp x parallel.tensor must divide the {self.device_count} devices, got "
                f"{self.fsdp} x {self.tensor}"
            )

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return len(self.on) or self.devices * jax.process_count()

    @property
    def description(self) -> str:
        shape = " x ".join(f"{size} {name}" for name, size in self.mesh.shape.items())
        return f"a mesh of {shape} {jax.default_backend()} devices"

    @functools.cached_property
    def mesh(self) -> Mesh:
        shape = self.device_count // (self.fsdp * self.tensor), self.fsdp, self.tensor
        devices = np.array(self.on or devices_of_each_process(self.devices))
        return Mesh(devices.reshape(shape), ("data", "fsdp", "tensor"))

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the mesh and their sizes."""
        return dict(self.mesh.shape)

    @property
    def _batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    def check_batch(self, size: int, micro_batches: int = 1) -> None:
        check_batch_size(size, self.device_count // self.tensor, micro_batches)

    def compile(self, step: Callable) -> Any:
        """`(state, frozen, batch, key) -> (state, metrics)`, for results of `device_put` and
        `shard`. Donates the state.
        """

        def program(state: Any, frozen: Any, batch: Any, key: Any) -> tuple[Any, Any]:
            abstract = self.mesh.abstract_mesh  # for kernels that are sharded by hand
            with jax.sharding.use_abstract_mesh(abstract), nn.intercept_methods(self._shard_rows):
                state, metrics = step(state, frozen, batch, key)
            return jax.lax.with_sharding_constraint(state, self.shardings(state)), metrics

        return jax.jit(program, donate_argnums=0)

    def _shard_rows(
        self, method: Callable, arguments: tuple, options: dict[str, Any], context: Any
    ) -> Any:
        """A layer's result, sharded by rows as the batch is. The compiler alone would shard it over
        `fsdp` as the layer's kernel is, and every device would compute all rows.
        """
        out = method(*arguments, **options)
        shards = math.prod(self.mesh.shape[axis] for axis in ROWS)
        if not isinstance(out, jax.Array) or out.ndim < 3 or out.shape[0] % shards:
            return out
        spec = PartitionSpec(ROWS, *[PartitionSpec.UNCONSTRAINED] * (out.ndim - 1))
        return jax.lax.with_sharding_constraint(out, NamedSharding(self.mesh, spec))

    def shardings(self, tree: Any) -> Any:
        """The sharding of each leaf of a tree of arrays or shapes."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: NamedSharding(self.mesh, self.spec(path, np.shape(x))), tree
        )

    def spec(self, path: jax.tree_util.KeyPath, shape: tuple[int, ...]) -> PartitionSpec:
        """The axes of the mesh over which an array at that path is sharded."""
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        last = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
        if len(last) > len(shape):
            last = ()
        axes = (None,) * (len(shape) - len(last)) + last
        divides = lambda axis, size: axis and size % self.mesh.shape[axis] == 0
        return PartitionSpec(
            *(axis if divides(axis, size) else None for axis, size in zip(axes, shape))
        )

    def create(self, make: Callable[..., Any], *same: Any, placed: Any = ()) -> Any:
        """The tree `make(*same, *placed)` as `device_put` would place it: each device computes its
        shards. Arguments in `placed` are results of `create` or `device_put`.
        """
        shardings = self.shardings(jax.eval_shape(make, *same, *placed))
        return jax.jit(make, out_shardings=shardings)(*same, *placed)

    def stored_like(self, shapes: Any) -> Any:
        """The `like` of `Checkpoints.restore` for a tree of these shapes, whose result `device_put`
        then places.
        """
        return self.device_put_shapes(shapes)

    def device_put(self, tree: Any) -> Any:
        """Each device's shards of a tree that every process has in full, or that is there."""

        def put(x: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(x, jax.Array) and x.sharding == sharding:
                return x
            return jax.make_array_from_callback(
                np.shape(x), sharding, lambda index: np.asarray(x)[index]
            )

        return jax.tree.map(put, tree, self.shardings(tree))

    def device_put_shapes(self, tree: Any) -> Any:
        """The shapes of `device_put`'s result, for a tree of arrays or shapes."""
        put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(put, tree, self.shardings(tree))

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows as its part of the global batch."""
        put = lambda x: jax.make_array_from_process_local_data(self._batch_sharding, x)
        return jax.tree.map(put, batch)

    def shard_shapes(self, batch: Any) -> Any:
        """The shapes of `shard`'s result, for shapes of the global batch."""
        put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._batch_sharding)
        return jax.tree.map(put, batch)

    def unreplicate(self, metrics: Any) -> Any:
        """The metrics themselves: there is one replica."""
        return metrics

    def local(self, state: Any) -> Any:
        """The state itself: a program can compute with it."""
        return state

    def to_store(self, state: Any) -> Any:
        """What `Checkpoints.save` takes for the state or a part of it: arrays on their devices."""
        return state

    def to_host(self, state: Any) -> Any:
        """The state or a part of it as NumPy arrays, in every process. Collective."""
        if jax.process_count() == 1:
            return jax.device_get(state)
        return multihost_utils.process_allgather(state, tiled=True)
