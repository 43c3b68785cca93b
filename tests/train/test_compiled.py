"""What is read from a compiled program: against programs whose collectives and products are known,
and the forms that XLA writes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqd_jax.train.cost.compiled import Collective, Program

MESH = {"data": 2, "fsdp": 2}
ALL = ((0, 1, 2, 3),)


def compiled(function, *shapes):
    """A program over two axes of two devices, whose arguments are cut over both."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    shared = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=PartitionSpec(("data", "fsdp")),
        out_specs=PartitionSpec(("data", "fsdp")),
        check_vma=False,
    )
    arguments = [
        jax.ShapeDtypeStruct(
            s, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )
        for s in shapes
    ]
    return Program.read(jax.jit(shared).lower(*arguments).compile().as_text())


def found(program):
    return {(c.kind, c.axes, c.size, c.count) for c in program.collectives(MESH)}


@pytest.mark.parametrize(
    "function,want",
    [
        (lambda x: jax.lax.psum(x, "data"), ("all-reduce", ("data",), 4 * 8)),
        (lambda x: jax.lax.psum(x, "fsdp"), ("all-reduce", ("fsdp",), 4 * 8)),
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), ("all-reduce", ("data", "fsdp"), 4 * 8)),
        (lambda x: jax.lax.all_gather(x, "fsdp").sum(0), ("all-gather", ("fsdp",), 4 * 8)),
        (
            lambda x: jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True),
            ("reduce-scatter", ("fsdp",), 4 * 8),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True),
            ("all-to-all", ("data",), 4 * 8),
        ),
        (lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1)]), ("collective-permute", ("fsdp",), 4 * 8)),
    ],
)
def test_each_kind_as_jax_makes_it_alone_and_in_loops(function, want):
    assert found(compiled(function, (4, 8))) == {(*want, 1)}
    loop = lambda x: jax.lax.fori_loop(
        0,
        3,
        lambda i, y: (
            y + jax.lax.scan(lambda c, _: (function(jnp.sin(c)).sum() + c, None), y, length=5)[0]
        ),
        x,
    )
    assert found(compiled(loop, (4, 8))) == {(*want, 15)}


def test_products_are_two_for_each_multiply_and_add_as_often_as_they_are_done():
    dot = lambda x, w: jnp.einsum("bnd,bde->bne", x, w)
    shapes = (4, 3, 5), (4, 5, 7)
    assert compiled(dot, *shapes).products() == 2 * 3 * 5 * 7
    loop = lambda x, w: jax.lax.fori_loop(
        0, 6, lambda i, y: y + jnp.tanh(dot(x + y.sum(), w)), jnp.zeros((1, 3, 7))
    )
    assert compiled(loop, *shapes).products() == 6 * 2 * 3 * 5 * 7
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    convolve = lambda x, w: conv(x, w[0])
    assert compiled(convolve, (4, 8, 8, 3), (4, 3, 3, 3, 5)).products() == 2 * 8 * 8 * 5 * 3 * 3 * 3


def test_no_collective_on_one_device():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert Program.read(text).collectives({"batch": 1}) == []


HEAD = (
    "HloModule m\n\n%add (x: f32[], y: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n  %y = f32[] "
    "parameter(1)\n"
    "  ROOT %s = f32[] add(%x, %y)\n}\n\n"
)


def read(*lines, before=""):
    return Program.read(
        HEAD
        + before
        + "ENTRY %main (p: f32[8,16]) -> f32[8,16] {\n  %p = f32[8,16]{1,0} parameter(0)\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\n}\n"
    )


@pytest.mark.parametrize(
    "attribute,groups,axes",
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3)), ("fsdp",)),
        ("replica_groups={{0,2},{1,3}}", ((0, 2), (1, 3)), ("data",)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3)), ("fsdp",)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3)), ("data",)),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}", ((0, 2), (1, 3)), ("data",)),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data','fsdp'}", ALL, ("data", "fsdp")),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3)), ("data",)),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3)), ("fsdp",)),
        ("replica_groups=[1,4]<=[4]", ALL, ("data", "fsdp")),
        ("replica_groups={}", ALL, ("data", "fsdp")),
    ],
)
def test_every_way_of_writing_groups(attribute, groups, axes):
    (one,) = read(
        f"ROOT %r = f32[8,16]{{1,0}} all-reduce(%p), channel_id=1, {attribute}, to_apply=%add"
    ).collectives(MESH)
    assert one == Collective("all-reduce", axes, 4 * 8 * 16, groups, 1)


def test_groups_of_one_exchange_nothing():
    assert (
        read(
            "ROOT %r = f32[8,16]{1,0} all-reduce(%p), replica_groups=[4,1]<=[4], to_apply=%add"
        ).collectives(MESH)
        == []
    )


def test_asynchronous_ones_count_once_and_by_what_a_device_has_before():
    program = read(
        "%a = (f32[8,16]{1,0}, f32[32,16]{1,0:T(8,128)}) all-gather-start(f32[8,16]{1,0:T(8,128)} "
        "%p), "
        "replica_groups=[1,4]<=[4], dimensions={0}",
        "%b = f32[32,16]{1,0} all-gather-done(%a)",
        "%c = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[], u32[]) collective-permute-start(%h), "
        "source_target_pairs={{0,1},{1,0}}",
        "%h = bf16[8,16]{1,0} custom-call(%p)",
        "%d = bf16[8,16]{1,0} collective-permute-done(%c)",
        "ROOT %r = f32[8,16]{1,0} negate(%p)",
    )
    assert found(program) == {
        ("all-gather", ("data", "fsdp"), 512, 1),
        ("collective-permute", ("fsdp",), 256, 1),
    }


def test_what_an_asynchronous_start_wraps_runs_once():
    wrapped = (
        "%wrapped (q: f32[8,16]) -> f32[8,16] {\n  %q = f32[8,16]{1,0} parameter(0)\n"
        "  ROOT %t = f32[8,16]{1,0} all-to-all(%q), replica_groups=[1,4]<=[4], "
        "dimensions={0}\n}\n\n"
    )
    program = read(
        "%a = ((f32[8,16]{1,0}), f32[8,16]{1,0}, u32[]) async-start(%p), calls=%wrapped",
        "ROOT %b = f32[8,16]{1,0} async-done(%a), calls=%wrapped",
        before=wrapped,
    )
    assert found(program) == {("all-to-all", ("data", "fsdp"), 512, 1)}


LOOP = """%body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %v = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %n = f32[8,16]{1,0} all-reduce(%v), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %o = (s32[], f32[8,16]{1,0}) tuple(%i, %n)
}

%condition (s.1: (s32[], f32[8,16])) -> pred[] {
  %s.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] constant(7)
  ROOT %l = pred[] compare(%j, %limit), direction=LT
}

"""


@pytest.mark.parametrize(
    "known,times", [("", 7), (', backend_config={"known_trip_count":{"n":"19"}}', 19)]
)
def test_a_loop_counts_by_what_xla_says_and_else_by_its_condition(known, times):
    program = read(
        "%t = (s32[], f32[8,16]{1,0}) tuple(%z, %p)",
        "%z = s32[] constant(0)",
        "%w = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition, body=%body" + known,
        "ROOT %r = f32[8,16]{1,0} get-tuple-element(%w), index=1",
        before=LOOP,
    )
    assert found(program) == {("all-reduce", ("data", "fsdp"), 512, times)}


def test_what_only_a_part_is_kept_of_is_scattered():
    cut = (
        "%cut (g: f32[8,16], k: s32[]) -> f32[4,16] {\n  %g = f32[8,16]{1,0} parameter(0)\n  %k = "
        "s32[] parameter(1)\n"
        "  %f = f32[8,16]{1,0} copy(%g)\n  %zero = s32[] constant(0)\n"
        "  ROOT %e = f32[4,16]{1,0} dynamic-slice(%f, %k, %zero), dynamic_slice_sizes={4,16}\n}\n\n"
    )
    lines = [
        "%q = f32[3]{0} custom-call()",
        "%n = s32[] partition-id()",
        "%a = (f32[8,16]{1,0}, f32[3]{0}) all-reduce(%p, %q), replica_groups=[2,2]<=[4], "
        "to_apply=%add",
        "%x = f32[8,16]{1,0} get-tuple-element(%a), index=0",
        "%y = f32[3]{0} get-tuple-element(%a), index=1",
        "%u = f32[4,16]{1,0} fusion(%x, %n), kind=kLoop, calls=%cut",
        "%w = f32[3]{0} negate(%y)",
    ]
    assert found(read(*lines, before=cut)) == {
        ("reduce-scatter", ("fsdp",), 512, 1),
        ("all-reduce", ("fsdp",), 12, 1),
    }
    whole = "%v = f32[8,16]{1,0} negate(%x)"  # another use keeps all of it
    assert found(read(*lines, whole, before=cut)) == {("all-reduce", ("fsdp",), 524, 1)}


def test_bfloat16_that_a_cpu_widens_counts_as_bfloat16():
    widened = read(
        "%h = bf16[8,16]{1,0} convert(%p)",
        "%c = f32[8,16]{1,0} convert(%h)",
        "%t = f32[16,8]{0,1} transpose(%c), dimensions={1,0}",
        "%g = f32[64,8]{0,1} all-gather(%t), replica_groups=[1,4]<=[4], dimensions={0}",
    )
    rounded = read(
        "%g = f32[8,16]{1,0} all-reduce(%p), replica_groups=[1,4]<=[4], to_apply=%add",
        "%c = bf16[8,16]{1,0} convert(%g)",
    )
    float32 = read(
        "%n = f32[8,16]{1,0} negate(%p)",
        "%g = f32[8,16]{1,0} all-reduce(%n), replica_groups=[1,4]<=[4], to_apply=%add",
        "%c = bf16[8,16]{1,0} convert(%g)",
        "%m = f32[8,16]{1,0} negate(%g)",
    )
    summed = read(
        "%h = bf16[8,16]{1,0} convert(%p)",
        "%c = f32[8,16]{1,0} convert(%h)",  # a gradient, made float32 for its sum
        "%g = f32[8,16]{1,0} all-reduce(%c), replica_groups=[1,4]<=[4], to_apply=%add",
        "%m = f32[8,16]{1,0} negate(%g)",
    )
    assert [c.size for p in (widened, rounded, float32, summed) for c in p.collectives(MESH)] == [
        256,
        256,
        512,
        512,
    ]


@pytest.mark.parametrize(
    "kind,sent",
    [("all-reduce", 1500), ("all-gather", 3000), ("reduce-scatter", 750), ("all-to-all", 750)],
)
def test_what_a_device_sends_around_a_ring_of_four(kind, sent):
    assert Collective(kind, ("batch",), 1000, ALL, 1).moved == sent
    assert Collective(kind, ("batch",), 1000, ALL, 3).moved == 3 * sent
    assert Collective("collective-permute", ("batch",), 1000, ((0, 1), (1, 0)), 2).moved == 2000
