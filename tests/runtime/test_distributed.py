"""Processes that meet on this machine, with one file system and with disks of their own; how one
that fails ends.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.ports import free_port
from vqd_jax.core.errors import UserError
from vqd_jax.runtime import distributed


def pair(code, *arguments):
    """Two processes that have joined; `me` is the number of each."""
    head = """
import json, os, sys
from pathlib import Path
import jax, numpy as np
from vqd_jax.runtime import distributed
from vqd_jax.core.errors import UserError
coordinator, me, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
distributed.initialize(coordinator, 2, me, timeout=60)
"""
    port, env = (
        free_port(),
        os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)},
    )
    return [
        subprocess.Popen(
            [sys.executable, "-c", head + code, f"127.0.0.1:{port}", str(i), *map(str, arguments)],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


MEET = """
import signal
from vqd_jax.runtime.checkpoint import Checkpoints
distributed.CHUNK = 1000  # so that files have several
own, shared, told = folder / f"disk{me}", folder / "shared", {}
told["primary"] = [distributed.primary_process(own), distributed.primary_process(shared / "run")]
mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
values = np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
rows = jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])
for primary, disk in zip(told["primary"], (own, shared)):
    for step in (3, 6):
        with Checkpoints(disk / "c") as checkpoints:
            checkpoints.save(step, {"state": {"rows": rows}, "config": {"a": step}})
        distributed.barrier()
        for again in range(2):
            distributed.broadcast_checkpoint(checkpoints.folder, checkpoints.steps(), primary)
    restored = checkpoints.restore("state", like={"rows": rows})["rows"]
    mine = restored.addressable_shards[0].data
    told[disk.name] = [checkpoints.steps(), checkpoints.restore("config"), np.array_equal(mine, values[2 * me:2 * me + 2])]
distributed.broadcast_checkpoint(own, [], me)
try:
    distributed.broadcast_checkpoint(own, [3, 7] if me else [3], me)
except UserError as error:
    told["further"] = str(error)
print(json.dumps(told), flush=True)
signal.pause()
"""


def test_the_others_get_the_checkpoints_that_they_do_not_see(request, tmp_path):
    both, told = pair(MEET, tmp_path), []
    for process in both:
        request.addfinalizer(process.kill)
        told.append(
            json.loads(
                next(line for line in iter(process.stdout.readline, "") if line.startswith("{"))
            )
        )
    contents = lambda folder: {
        f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }
    for me, said in enumerate(told):
        assert said["primary"] == [me, 0]
        assert said[f"disk{me}"] == said["shared"] == [[3, 6], {"a": 6}, True]
        assert (
            said["further"].startswith("process 1 has a checkpoint of step 7")
            and str(tmp_path / f"disk{me}") in said["further"]
        )
    assert contents(tmp_path / "disk0") == contents(tmp_path / "disk1")
    assert len(contents(tmp_path / "shared")) == len(
        contents(tmp_path / "disk0")
    )  # nothing else was left there
    for process in both:  # while processes are joined, JAX would ignore it
        process.send_signal(signal.SIGTERM)
    assert [process.wait(timeout=30) for process in both] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize(
    "failure,status,said", [("sys.exit(3)", 3, ""), ("raise KeyError('odd')", 1, "KeyError: 'odd'")]
)
def test_one_that_fails_does_not_wait_for_the_others(failure, status, said):
    both = pair(
        f"""
import time
with distributed.exit_on_error():
    if me == 1:
        {failure}
    time.sleep(100)
""",
        "unused",
    )
    try:
        assert both[1].wait(timeout=25) == status  # JAX's own way out takes at least 30 s
        assert said in both[1].stderr.read() and both[0].poll() is None
    finally:
        both[0].kill()
        both[0].wait()


def test_sigterm_keeps_its_status_among_several_processes():
    """143 says that the work is not done, also from the process that did not get the signal."""
    both = pair(
        """
from vqd_jax.cli import runner
from vqd_jax.runtime import signals
def main():
    with signals.deferred() as received:
        while not distributed.broadcast_flag(received()):
            if me == 0:
                os.kill(os.getpid(), 15)
        signals.interrupt()
signals.install_handlers()
with distributed.exit_on_error():
    sys.exit(runner.status(main))
""",
        "unused",
    )
    try:
        assert [process.wait(timeout=60) for process in both] == [143, 143]
    finally:
        for process in both:
            process.kill()
            assert "Traceback" not in process.stderr.read()


def test_a_process_alone():
    distributed.initialize("")
    distributed.barrier()
    distributed.broadcast_checkpoint(Path("none"), [2, 5], 0)
    with pytest.raises(SystemExit, match="3"), distributed.exit_on_error():
        sys.exit(3)


def test_alone_nothing_is_written_to_find_out_who_sees_what(tmp_path):
    assert distributed.primary_process(tmp_path / "none") == 0 and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments,said",
    [
        (("", 2, 0), "--processes and --process need --coordinator=HOST:PORT"),
        (("host", 2, 0), "--coordinator must be HOST:PORT or auto, got host"),
        (("host:port", 2, 0), "--coordinator must be HOST:PORT or auto, got host:port"),
        (("host:1", 2, None), "with I from 0 to N - 1, got 2 and None"),
        (("host:1", 2, 2), "with I from 0 to N - 1, got 2 and 2"),
        (("host:1", 2, -1), "with I from 0 to N - 1, got 2 and -1"),
    ],
)
def test_wrong_flags_are_a_sentence(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        distributed.initialize(*arguments)


def test_a_first_process_that_is_not_there_and_a_port_that_is_taken_are_sentences():
    port = free_port()
    with pytest.raises(
        UserError,
        match=f"could not be reached at 127.0.0.1:{port} within 0 s .*is it running there",
    ):
        distributed.initialize(f"127.0.0.1:{port}", 2, 1, timeout=0)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(
            UserError, match=r"cannot listen on port \d+ \(Address already in use\)"
        ):
            distributed.initialize(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


def test_nobody_else_to_find_is_a_sentence():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from vqd_jax.runtime import distributed; distributed.initialize('auto')",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert (
        done.returncode == 1
        and "UserError: --coordinator=auto found no other processes" in done.stderr
    ), done.stderr
