"""What is read from a compiled program, against programs whose collectives and memory are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.train.cost.program import Memory, Program

BOTH = PartitionSpec(("data", "fsdp"))


def read(function, *shapes):
    """A program over two axes of two devices, whose arguments are sharded over both."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=BOTH, out_specs=BOTH, check_vma=False)
    place = lambda s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, BOTH))
    return Program.read(jax.jit(mapped).lower(*map(place, shapes)).compile())


@pytest.mark.parametrize(
    "function,kind",
    [
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), "all-reduce"),
        (lambda x: jax.lax.all_gather(x, "fsdp").sum(0), "all-gather"),
        (
            lambda x: jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True),
            "reduce-scatter",
        ),
        (
            lambda x: jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True),
            "all-to-all",
        ),
        (lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1)]), "collective-permute"),
    ],
)
def test_each_collective_alone_and_in_loops(function, kind):
    """Its operand is a row of eight numbers of four bytes."""
    alone = read(function, (4, 8))
    assert alone.collectives == {kind: (1, 4 * 8)}
    assert alone.kernels == {} and alone.cycles is None  # a CPU's compiler has neither
    loop = lambda x: jax.lax.fori_loop(
        0,
        3,
        lambda i, y: (
            y + jax.lax.scan(lambda c, _: (function(jnp.sin(c)).sum() + c, None), y, length=5)[0]
        ),
        x,
    )
    assert read(loop, (4, 8)).collectives == {kind: (15, 15 * 4 * 8)}


def test_memory_and_what_is_donated():
    """The result takes the memory of the first argument, the second is kept."""
    function = jax.jit(lambda x, y: jnp.tanh(x + y), donate_argnums=0)
    shapes = [jax.ShapeDtypeStruct((16, 64), jnp.float32)] * 2
    memory = Program.read(function.lower(*shapes).compile()).memory
    size = 4 * 16 * 64
    assert (memory.arguments, memory.outputs, memory.in_place) == (2 * size, size, size)
    assert memory.peak == 2 * size + memory.temporaries
    assert Memory(arguments=40, outputs=30, in_place=20, temporaries=15).peak == 65


def test_the_largest_arrays():
    """What a loop hands on is listed once; arguments are not computed."""
    step = lambda x, _: (jnp.tanh(x @ x), x.sum())
    program = jax.jit(lambda x: jax.lax.scan(step, x, None, length=3)).lower(jnp.ones((32, 32)))
    largest = Program.read(program.compile()).largest
    assert next(iter(largest.items())) == ("f32[32,32]", 4 * 32 * 32)
    assert list(largest.values()) == sorted(largest.values(), reverse=True)


def test_a_program_of_one_device_exchanges_nothing():
    program = Program.read(jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile())
    assert program.collectives == {}
