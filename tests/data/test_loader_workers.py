"""Batches from several processes: the same ones, errors reach the reader, and no process stays."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.toy_training import environment

SCRIPT = """
import os, sys
import numpy as np
from absl import flags
from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader

def load(item, rng):
    if item == int(sys.argv[1]):
        raise UserError(f"item {item} is broken")
    return {"item": np.int64(item), "draw": rng.random(2), "process": np.int64(os.getpid())}

if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    make = lambda workers: Loader(range(100), batch_size=4, seed=0, load=load, workers=workers)
    with make(0).iterate(3) as one, make(2).iterate(3) as several:
        processes = set()
        for _, a, b in zip(range(40), one, several):
            processes |= {*b["process"].tolist()}
            for name in ("item", "draw"):
                np.testing.assert_array_equal(a[name], b[name])
        assert len(processes) == 2 and os.getpid() not in processes
        print(*processes, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path):
    (script := tmp_path / "script.py").write_text(SCRIPT)
    return lambda broken: subprocess.Popen(
        [sys.executable, script, str(broken)],
        env=environment(),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_the_same_batches_and_no_process_stays(start, number):
    process = start(broken=-1)
    workers = [*map(int, process.stdout.readline().split())]
    assert len(workers) == 2, process.stderr.read()
    if number:
        process.send_signal(number)
    _, errors = process.communicate("\n", timeout=30)
    assert process.returncode == (-number if number else 0), errors
    deadline = time.monotonic() + 10
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, workers))


def test_an_error_in_a_worker_reaches_the_reader(start):
    _, errors = start(broken=7).communicate("\n", timeout=60)
    assert "UserError: item 7 is broken" in errors


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
