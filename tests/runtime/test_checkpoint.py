"""What was saved comes back bit for bit; what was cut, killed, flipped or lost is never taken for a
checkpoint.
"""

import json
import logging as stdlib_logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from helpers import ROOT
from vqd_jax.core.checksums import CHECKSUMS
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.orbax_io import quiet_orbax


def params(seed=0):
    r = np.random.default_rng(seed)
    return {
        "layer": {
            "kernel": jnp.asarray(r.normal(size=(64, 48)), jnp.float32),
            "bias": jnp.zeros(48),
        },
        "half": jnp.asarray(r.normal(size=7), jnp.bfloat16),
        "count": jnp.asarray(3, jnp.int32),
        "bits": np.array([True, False]),
        "ids": np.arange(5, dtype=np.uint32),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def snapshot(folder):
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [folder, *folder.rglob("*")]}


@pytest.fixture
def saved(tmp_path):
    """Steps 1 and 2 of two trees and two JSON items."""
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                step,
                {
                    "state": params(step),
                    "weights": {"ema": params(10 + step)},
                    "config": {"lr": 0.1, "n": [1, 2]},
                    "tokenizer": None,
                    "note": "hello",
                },
            )
    return tmp_path / "c"


def test_every_item_comes_back_alone_as_numpy(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.latest_step() == 2
    assert_same(checkpoints.restore("state"), jax.device_get(params(2)))
    assert_same(checkpoints.restore("weights", step=1), jax.device_get({"ema": params(11)}))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(checkpoints.restore("state")))
    assert checkpoints.restore("config") == {"lr": 0.1, "n": [1, 2]}
    assert checkpoints.restore("note") == "hello"
    assert (
        checkpoints.has("config")
        and not checkpoints.has("tokenizer")
        and not checkpoints.has("config", step=9)
    )


def test_the_structure_of_like_comes_back(tmp_path):
    weights = {k: v for k, v in params().items() if k in ("layer", "half")}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(0.0, 1.0, 9)))
    state = {
        "params": weights,
        "optimizer": optimizer.init(weights),
        "examples": 640,
        "list": [weights["half"], None],
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"state": state}, wait=True)
        restored = checkpoints.restore("state", like=jax.tree.map(lambda x: x * 0, state))
    assert_same(restored, state)
    assert restored["examples"] == 640 and isinstance(restored["examples"], int)
    assert isinstance(restored["params"]["half"], jax.Array)


def test_orbax_itself_reads_it(saved):
    with ocp.CheckpointManager(
        saved, options=ocp.CheckpointManagerOptions(read_only=True)
    ) as manager:
        assert manager.latest_step() == 2
        got = manager.restore(
            2,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), note=ocp.args.JsonRestore()),
        )
    assert_same(got.state, jax.device_get(params(2)))
    assert got.note == "hello"


def test_it_is_small_in_few_files_without_paths(tmp_path):
    r = np.random.default_rng(0)
    tree = {
        f"layer_{i}": {
            "kernel": r.normal(size=(256, 256)).astype(np.float32),
            "scale": np.ones(256, np.float32),
        }
        for i in range(16)
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"weights": tree, "config": {"a": 1}})
    files = [f for f in (tmp_path / "1").rglob("*") if f.is_file()]
    assert len(files) <= 20  # for 33 arrays and values; Orbax groups them by timing
    assert sum(f.stat().st_size for f in files) < 1.02 * sum(
        x.nbytes for x in jax.tree.leaves(tree)
    )
    assert not [f for f in files if str(tmp_path).encode() in f.read_bytes()]


@pytest.mark.parametrize("shape", [(1,), (2,), (4,)])
def test_device_counts_may_change(tmp_path, shape):
    mesh = lambda n: jax.make_mesh(
        (n,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]
    )
    value = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    placed = {
        "rows": jax.device_put(value, NamedSharding(mesh(4), PartitionSpec("x"))),
        "copies": jax.device_put(value, NamedSharding(mesh(4), PartitionSpec())),
    }
    sharding = NamedSharding(mesh(*shape), PartitionSpec("x"))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), placed)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"state": placed}, wait=True)
        restored = checkpoints.restore("state", like=like)
    for x in restored.values():
        assert x.sharding == sharding
        np.testing.assert_array_equal(x, value)


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    host, device = np.ones(200_000), jnp.ones(200_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": {"host": host, "device": device}})
        host[:] = 2
        jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(device))
        restored = checkpoints.restore("state")
    assert device.is_deleted()  # saving kept no hold on it
    assert (restored["host"] == 1).all() and (restored["device"] == 1).all()


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 1),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "choose",
    [
        lambda files: max(files, key=lambda f: f.stat().st_size),
        lambda files: min(files, key=lambda f: f.stat().st_size),
    ],
)
def test_damage_is_found_in_the_item_that_is_read_and_only_there(saved, damage, choose):
    DAMAGE[damage](choose([f for f in (saved / "2/state").rglob("*") if f.is_file()]))
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(
        UserError, match=f"checkpoint step 2 in {saved} is damaged: state/.*(missing|changed)"
    ):
        checkpoints.restore("state")
    assert_same(checkpoints.restore("weights"), jax.device_get({"ema": params(12)}))
    assert_same(checkpoints.restore("state", step=1), jax.device_get(params(1)))


@pytest.mark.parametrize("text", ["", "[]", '{"state/_METADATA": 1'])
def test_damaged_sums(saved, text):
    (saved / "2" / CHECKSUMS).write_text(text)
    with pytest.raises(
        UserError, match=f"step 2 in {saved} is damaged: {CHECKSUMS} is not readable"
    ):
        Checkpoints(saved, read_only=True).restore("state", step=2)


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("item", ["weights", "config", "state"])
def test_the_newest_whole_step_is_the_latest_and_damaged_ones_are_named(
    saved, item, read_only, caplog
):
    largest = lambda step: max(
        (f for f in (saved / step / item).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    flip(largest("2"))
    checkpoints = Checkpoints(saved, read_only=read_only)
    unseen = read_only and item == "state"  # who samples does not read what training needs
    assert checkpoints.latest_step() == (2 if unseen else 1) and checkpoints.steps() == [1, 2]
    assert_same(
        checkpoints.restore("weights"), jax.device_get({"ema": params(12 if unseen else 11)})
    )
    assert (
        (f"checkpoint step 2 in {saved} is damaged: {item}/" in caplog.text)
        == ("step 1 is used" in caplog.text)
        == (not unseen)
    )
    flip(largest("1"))
    if not unseen:
        with pytest.raises(
            UserError,
            match=r"step 2 .* is damaged: .*; checkpoint step 1 .* is damaged: .*; there is no other",
        ):
            checkpoints.latest_step()


def test_after_falling_back_training_goes_on(saved):
    """Step 2 is damaged: resume from 1, save 2 again."""
    flip(
        max(
            (f for f in (saved / "2/state").rglob("*") if f.is_file()),
            key=lambda f: f.stat().st_size,
        )
    )
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(2, {"state": params(7)}, wait=True)
        assert_same(checkpoints.restore("state"), jax.device_get(params(7)))
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2"]


def test_a_rewound_run_drops_the_steps_it_left(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, {"config": {"step": step}}, wait=True)
        assert checkpoints.steps() == [20, 30]
        checkpoints.save(25, {"config": {"step": 25}}, wait=True)
        assert checkpoints.steps() == [20, 25]
        assert checkpoints.restore("config") == {"step": 25}


def test_leftovers_are_never_steps_and_only_a_writer_removes_them(saved):
    (saved / "7").mkdir()
    (saved / "8.orbax-checkpoint-tmp/state").mkdir(parents=True)
    (saved / "1").rename(saved / "6.deleted")
    (saved / "2").rename(saved / "2.replaced")
    (saved / "9").mkdir()
    # committed, but killed before its sums were written
    (saved / "9/_CHECKPOINT_METADATA").write_text("{}")
    (saved / "9.unfinished").touch()
    (saved / "notes").mkdir()
    before = snapshot(saved)
    assert Checkpoints(saved, read_only=True).latest_step() is None
    assert snapshot(saved) == before
    checkpoints = Checkpoints(saved)
    assert sorted(p.name for p in saved.iterdir()) == ["2", "notes"]
    assert_same(checkpoints.restore("state"), jax.device_get(params(2)))


def test_steps_that_lost_their_sums_are_set_aside_and_never_deleted(saved, caplog):
    for step in ("1", "2"):
        (saved / step / CHECKSUMS).unlink()
    (saved / "2.damaged").mkdir()  # an earlier one
    before = {path: path.read_bytes() for path in (saved / "2").rglob("*") if path.is_file()}
    assert Checkpoints(saved, read_only=True).steps() == []
    assert Checkpoints(saved).steps() == []
    assert sorted(p.name for p in saved.iterdir()) == ["1.damaged", "2.damaged", "2.damaged1"]
    for path, content in before.items():
        assert (saved / "2.damaged1" / path.relative_to(saved / "2")).read_bytes() == content
    assert (
        f"step 2 has lost its {CHECKSUMS} and cannot be verified: it is now {saved}/2.damaged1"
        in (caplog.text)
    )


@pytest.mark.parametrize("name", ["state/_METADATA", "weights", "_CHECKPOINT_METADATA"])
def test_sums_that_do_not_list_every_file_are_no_sums(saved, name):
    path = saved / "2" / CHECKSUMS
    sums = {
        file: sha for file, sha in json.loads(path.read_text()).items() if not file.startswith(name)
    }
    path.write_text(json.dumps(sums))
    with pytest.raises(UserError, match=f"is damaged: {CHECKSUMS} does not list {name}"):
        Checkpoints(saved, read_only=True).restore(name.partition("/")[0].strip("_"), step=2)
    assert Checkpoints(saved).latest_step() == 1


def test_everything_is_on_the_disk_before_the_sums_are(tmp_path, monkeypatch):
    """So that a power failure leaves no step that looks finished and is not."""
    calls, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda f: (calls.append(os.readlink(f"/proc/self/fd/{f}")), real(f))
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"state": params(1), "config": {"a": 1}}, wait=True)
    files = {str(path) for path in (tmp_path / "3").rglob("*") if path.is_file()}
    sums = next(i for i, path in enumerate(calls) if CHECKSUMS in path)
    assert {*calls[:sums]} >= files - {str(tmp_path / "3" / CHECKSUMS)}
    assert str(tmp_path / "3") in calls[sums:] and str(tmp_path) in calls[sums:]


def test_read_only_writes_nothing(saved):
    before = snapshot(saved)
    with Checkpoints(saved, read_only=True) as checkpoints:
        checkpoints.restore("state", like=params())
        checkpoints.restore("config")
        with pytest.raises(ValueError, match="read-only"):
            checkpoints.save(3, {"config": {}})
    assert snapshot(saved) == before
    assert Checkpoints(saved / "absent", read_only=True).latest_step() is None
    assert not (saved / "absent").exists()


def test_a_model_that_differs_is_told_where(saved):
    like = params() | {
        "extra": {"deep": jnp.ones(2)},
        "half": jnp.zeros(7),
        "ids": np.zeros(6, np.uint32),
    }
    del like["bits"]
    with pytest.raises(UserError) as error:
        Checkpoints(saved, read_only=True).restore("state", like=like)
    text = str(error.value)
    assert f"step 2 in {saved}" in text and "\n" not in text
    for part in (
        "missing: extra/deep",
        "not expected: bits",
        "half is bfloat16[7] but float32[7] is expected",
        "ids is uint32[5] but uint32[6] is expected",
    ):
        assert part in text


def test_what_is_not_there_is_told(saved, tmp_path):
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(
        UserError, match=f"no finished checkpoint of step 4 in {saved}, only steps 1, 2"
    ):
        checkpoints.restore("state", step=4)
    with pytest.raises(UserError, match="has no 'tokenizer', only config, note, state, weights"):
        checkpoints.restore("tokenizer")
    with pytest.raises(UserError, match="there is no finished checkpoint in .*none at all"):
        Checkpoints(tmp_path / "empty").restore("state")
    with pytest.raises(UserError, match="write a local folder or gs://BUCKET.*s3://bucket/run"):
        Checkpoints("s3://bucket/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints to .*file"):
        Checkpoints(tmp_path / "file/c")


def test_a_failed_save_is_not_silent(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    (tmp_path / "c").rmdir()
    (tmp_path / "c").write_text("in the way")
    with pytest.raises(UserError, match="cannot write checkpoint step 1"):
        checkpoints.save(1, {"config": {}})
        checkpoints.wait()
    checkpoints.close()


def test_keys_are_refused(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="rng/dropout is a PRNG key"),
    ):
        checkpoints.save(1, {"state": {"rng": {"dropout": jax.random.key(0)}}})


def test_saving_and_restoring_log_only_warnings(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for logger in (logging.get_absl_logger(), stdlib_logging.getLogger("asyncio")):
        monkeypatch.setattr(logger, "filters", [*logger.filters])
    quiet_orbax()
    with caplog.at_level("INFO"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": params()})
        checkpoints.restore("state")
        logging.info("what the run says")
    assert caplog.messages == ["what the run says"]


SAVE_FOREVER = """
import sys, numpy as np
from vqd_jax.runtime.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 1000):
    checkpoints.save(step, {"state": {f"x{i}": np.full(50_000, step) for i in range(8)}}, wait=True)
    print(step, flush=True)
"""


def python(code, *args):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("delay", [0.01, 0.04])
def test_killed_while_saving(tmp_path, delay):
    process = python(SAVE_FOREVER, tmp_path)
    while process.stdout.readline() != "2\n":
        assert process.poll() is None
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    told = [2, *map(int, process.communicate()[0].split())][-1]
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() in (told, told + 1)
    restored = checkpoints.restore("state")
    assert all((x == checkpoints.latest_step()).all() for x in restored.values())
    assert all(p.name.isdecimal() for p in tmp_path.iterdir())


TWO_PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vqd_jax.runtime.checkpoint import Checkpoints
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
shard = lambda spec: NamedSharding(mesh, spec)
value = np.arange(12.0, dtype=np.float32).reshape(4, 3)
make = lambda spec: jax.make_array_from_callback(value.shape, shard(spec), lambda i: value[i])
state = {"copies": make(PartitionSpec()), "rows": make(PartitionSpec("x")), "local": jnp.ones(3)}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(4, {"state": state, "config": {"a": 1}})
jax.experimental.multihost_utils.sync_global_devices("saved")
checkpoints = Checkpoints(sys.argv[1], read_only=True)
restored = checkpoints.restore("state", like=state)
assert restored["rows"].sharding == state["rows"].sharding and checkpoints.restore("config") == {"a": 1}
for name in ("copies", "rows"):
    for piece in restored[name].addressable_shards:
        np.testing.assert_array_equal(piece.data, value[piece.index])
print("ok")
"""


def test_two_processes(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = [
        python("import jax.experimental.multihost_utils\n" + TWO_PROCESSES, tmp_path, port, i)
        for i in range(2)
    ]
    assert [p.communicate(timeout=60)[0].strip().splitlines()[-1:] for p in both] == [
        ["ok"],
        ["ok"],
    ]
