"""Checkpoints that two processes write together, each its own shards, and that any number of
processes and devices read.
"""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from helpers import ROOT
from helpers.ports import free_port
from vqd_jax.core.checksums import mismatch
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints

VALUE = np.random.default_rng(0).normal(size=(512, 96)).astype(np.float32)
HEAD = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vqd_jax.runtime import orbax_io
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.core.errors import UserError
me, folder = int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(sys.argv[1], 2, me)
mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
value = np.random.default_rng(0).normal(size=(512, 96)).astype(np.float32)
make = lambda value, *spec: jax.make_array_from_callback(value.shape, NamedSharding(mesh, PartitionSpec(*spec)), lambda i: value[i])
state = lambda n: {"rows": make(n * value, "x"), "columns": make(n * value, None, "x"), "copies": make(n * value),
                   "local": jax.numpy.full(3, n), "host": np.full(5, n), "examples": n}
"""
TOGETHER = """
whole = orbax_io.multihost_utils.process_allgather
orbax_io.multihost_utils.process_allgather = None  # nobody needs the whole
add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
with Checkpoints(folder / "together", shared=True) as checkpoints:
    for n in (1, 2, 3):
        tree = state(n)
        checkpoints.save(10 * n, {"state": tree, "config": {"n": n}})
        jax.block_until_ready(add({name: tree[name] for name in ("rows", "columns", "copies")}))  # what was saved is as it was
        tree["host"][:] = -1
    checkpoints.save(20, {"state": state(2), "config": {"n": 2}})  # a run that was rewound
assert checkpoints.steps() == [20]  # closed, it is finished in every process
orbax_io.multihost_utils.process_allgather = whole
with Checkpoints(folder / "first", shared=False) as checkpoints:
    checkpoints.save(20, {"state": state(2), "config": {"n": 2}})
jax.experimental.multihost_utils.sync_global_devices("saved")
for written in ("together", "first"):
    checkpoints = Checkpoints(folder / written, read_only=True)
    like = state(0) | {"rows": make(value, None, "x")}
    restored = checkpoints.restore("state", like=like)
    for name in ("rows", "columns", "copies"):
        assert restored[name].sharding == like[name].sharding
        for piece in restored[name].addressable_shards:
            np.testing.assert_array_equal(piece.data, 2 * value[piece.index])
    assert restored["local"].tolist() == [2] * 3 and restored["host"].tolist() == [2] * 5 and restored["examples"] == 2
    assert checkpoints.restore("config") == {"n": 2}
    try:
        checkpoints.restore("state", like=like | {"rows": make(value[:-2], "x")})
    except UserError as error:
        assert "rows is float32[512, 96] but float32[510, 96] is expected" in str(error)
    else:
        raise AssertionError
print("ok", flush=True)
"""


def two(code, folder):
    port, env = (
        free_port(),
        os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)},
    )
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import jax.experimental.multihost_utils\n" + HEAD + code,
                f"127.0.0.1:{port}",
                str(i),
                str(folder),
            ],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    both = two(TOGETHER, folder)
    for process in both:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0 and out.strip().endswith("ok"), errors
    return folder


def sizes(state):
    """Bytes of data that each process wrote, by the names that Orbax gives their folders."""
    return {
        d.name: sum(f.stat().st_size for f in (d / "d").iterdir())
        for d in state.glob("ocdbt.process_*")
    }


def test_each_process_writes_its_own_parts_and_the_first_one_the_sums(saved):
    folder = saved / "together"
    assert [p.name for p in folder.iterdir()] == [
        "20"
    ]  # 10 was one too many, 30 was left, and nothing else stays behind
    written = sizes(folder / "20" / "state")
    assert (
        written.keys() == {"ocdbt.process_0", "ocdbt.process_1"} and mismatch(folder / "20") is None
    )
    assert min(written.values()) > 0.9 * VALUE.nbytes  # half of rows and of columns
    alone = sizes(saved / "first" / "20" / "state")
    assert len(alone) == 1 and sum(alone.values()) > 2.5 * VALUE.nbytes


@pytest.mark.parametrize("name", ["together", "first"])
def test_one_process_reads_it_whole_or_onto_its_own_devices(saved, name):
    checkpoints = Checkpoints(saved / name, read_only=True)
    got = checkpoints.restore("state")
    assert {type(got[part]) for part in ("rows", "columns", "copies", "local", "host")} == {
        np.ndarray
    } and got["examples"] == 2
    for part in ("rows", "columns", "copies"):
        np.testing.assert_array_equal(got[part], 2 * VALUE)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    like = got | {
        "rows": jax.ShapeDtypeStruct(
            VALUE.shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec("y", "x"))
        )
    }
    rows = checkpoints.restore("state", like=like)["rows"]
    assert rows.sharding == like["rows"].sharding and rows.addressable_shards[0].data.shape == (
        256,
        48,
    )
    np.testing.assert_array_equal(rows, 2 * VALUE)


def test_damage_to_the_part_of_any_process_is_found(saved):
    data = max(
        (saved / "together" / "20" / "state" / "ocdbt.process_1" / "d").iterdir(),
        key=lambda f: f.stat().st_size,
    )
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="step 20 .* is damaged: state/ocdbt.process_1/"):
            Checkpoints(saved / "together", read_only=True).restore("state", step=20)
    finally:
        data.write_bytes(whole)


FOREVER = """
with Checkpoints(folder, shared=True) as checkpoints:
    for n in range(1, 1000):
        checkpoints.save(n, {"state": state(n)}, wait=True)
        print(n, flush=True)
"""


@pytest.mark.parametrize("order", [(0, 1), pytest.param((1, 0), marks=pytest.mark.slow)])
def test_killed_while_both_are_saving(tmp_path, order):
    both = two(FOREVER, tmp_path)
    try:
        while both[0].stdout.readline() != "3\n":
            assert both[0].poll() is None, both[0].stderr.read()
        time.sleep(random.uniform(0, 0.3))
        both[order[0]].send_signal(signal.SIGKILL)
        time.sleep(random.uniform(0, 0.1))
    finally:
        both[order[1]].kill()
        told = [3, *map(int, both[0].communicate()[0].split())][-1]
        both[1].communicate()
    checkpoints = Checkpoints(tmp_path)
    latest = checkpoints.latest_step()
    assert latest in (told, told + 1) and all(p.name.isdecimal() for p in tmp_path.iterdir())
    got = checkpoints.restore("state")
    np.testing.assert_array_equal(got["rows"], np.float32(latest) * VALUE)
    np.testing.assert_array_equal(got["columns"], np.float32(latest) * VALUE)
    assert got["examples"] == latest and got["host"].tolist() == [latest] * 5


def test_lost_exceptions_are_quiet_printed_or_a_signal_again(tmp_path):
    """What destructors raise, in a process that listens for signals and has saved: Orbax's of a
    closed loop, others, Ctrl-C's.
    """
    code = """
import sys, time
from vqd_jax.runtime import signals
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.orbax_io import quiet_orbax
class Loud:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error
quiet_orbax()
signals.install_handlers()
Checkpoints(sys.argv[1]).save(1, {"config": {"n": 1}}, wait=True)
Loud(RuntimeError("Event loop is closed"))
Loud(ValueError("of another kind"))
try:
    Loud(KeyboardInterrupt())
    time.sleep(20)
except signals.INTERRUPTS as e:
    print(type(e).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "steps"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["Terminated"]
    assert "of another kind" in done.stderr and "Event loop is closed" not in done.stderr
