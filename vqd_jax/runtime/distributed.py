"""Several processes that train together, usually one per machine: how they connect, and which of
them writes files.

They share batches and gradients. Everything else each process computes itself, from the same data
and seed. Process 0 writes the workdir. The others read its files if they see the same folder, and
otherwise receive copies of the checkpoints they need.

"Collective" functions must be called by every process, in the same order.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqd_jax.core.buckets import is_bucket
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, remove_leftovers
from vqd_jax.runtime.signals import ENDING

CHUNK = 2**26  # bytes of a file sent at a time
_barriers = itertools.count()


def initialize(
    coordinator: str, count: int | None = None, index: int | None = None, *, timeout: int = 300
) -> None:
    """Connects this process, `index` of `count`, with the others, before JAX computes anything.

    coordinator: HOST:PORT of process 0; "auto" where JAX detects everything (on a TPU pod); "" for
      a single process.
    timeout: seconds to wait for the others.
    UserError if process 0 cannot be reached.
    """
    if not coordinator:
        if count is not None or index is not None:
            raise UserError("--processes and --process need --coordinator=HOST:PORT, of process 0")
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    limits: dict[str, Any] = {"initialization_timeout": timeout, "shutdown_timeout_seconds": 30}
    if coordinator == "auto":
        try:
            jax.distributed.initialize(**limits)
        except ValueError as error:
            raise UserError(
                f"--coordinator=auto found no other processes ({error}): give HOST:PORT, "
                "--processes and --process"
            ) from error
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator must be HOST:PORT or auto, got {coordinator}")
    if count is None or index is None or not 0 <= index < count:
        raise UserError(
            f"--coordinator={coordinator} needs --processes=N and --process=I with I from 0 to N "
            f"- 1, got {count} and {index}"
        )
    print(f"process {index} of {count}, process 0 is at {coordinator}", flush=True)
    if index == 0:
        _check_port(int(port))
    else:
        _wait_for(host, int(port), timeout)
    # Without "deactivate" JAX would use one GPU per process under Slurm.
    jax.distributed.initialize(
        coordinator, count, index, cluster_detection_method="deactivate", **limits
    )


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Exits at once when this process fails while connected to others, which then notice. JAX's
    normal exit would wait for them, and they for this process.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        orderly = {None, 0} | {128 + number for number in ENDING if number != signal.SIGINT}
        if status in orderly or not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def primary_process(folder: Path) -> int:
    """The index of the first process that sees the same `folder`, which is created if need be: 0
    for one in a bucket. Collective.
    """
    if jax.process_count() == 1 or is_bucket(folder):
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    marker = lambda number: folder / f".process-{number}"
    own = secrets.randbits(31)
    marker(own).touch()
    seen = [marker(number).exists() for number in multihost_utils.process_allgather(np.int32(own))]
    barrier()
    marker(own).unlink()
    return seen.index(True)


def is_shared(primary: int) -> bool:
    """Whether all processes see the same folder, given each one's `primary_process` of it.
    Collective.
    """
    if jax.process_count() == 1:
        return True
    return not multihost_utils.process_allgather(np.int32(primary)).any()


def barrier() -> None:
    """Returns once every process has called it. Collective."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"barrier {next(_barriers)}")


def broadcast_flag(flag: bool) -> bool:
    """Process 0's flag. Collective."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def broadcast_json(value: Any) -> Any:
    """Process 0's value, which JSON can hold. Collective."""
    if jax.process_count() == 1:
        return value
    return json.loads(_broadcast_bytes(json.dumps(value).encode()))


def broadcast_checkpoint(folder: Path, steps: Sequence[int], primary: int) -> None:
    """Copies process 0's latest checkpoint in `folder` to the processes that do not see its files.
    Collective.

    steps: the finished steps that this process sees, or those of them from which the latest is
      taken. primary: its `primary_process` of the folder.
    UserError if another process has a later checkpoint than process 0.
    """
    if jax.process_count() == 1:
        return
    me = jax.process_index()
    latest = multihost_utils.process_allgather(np.int32(max(steps, default=-1))).tolist()
    if max(latest) > latest[0]:
        raise UserError(
            f"process {latest.index(max(latest))} has a checkpoint of step {max(latest)} in "
            f"{folder}, later than those of process 0: copy it there, or remove it"
        )
    if min(latest) == latest[0]:
        return
    source = folder / str(latest[0])
    receives = latest[me] < latest[0] and primary == me
    files = sorted(f for f in source.rglob("*") if f.is_file()) if me == 0 else []
    sizes = [[f.relative_to(source).as_posix(), f.stat().st_size] for f in files]
    sizes = json.loads(_broadcast_bytes(json.dumps(sizes).encode()))
    if receives:
        remove_leftovers(folder)
    with atomic_write(source) if receives else contextlib.nullcontext() as target:
        for name, size in sizes:
            with contextlib.ExitStack() as opened:
                if receives:
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    output = opened.enter_context((target / name).open("wb"))
                if me == 0:
                    content = opened.enter_context((source / name).open("rb"))
                for start in range(0, size, CHUNK):
                    chunk = content.read(CHUNK) if me == 0 else b""
                    chunk = _broadcast_bytes(chunk, min(CHUNK, size - start))
                    if receives:
                        output.write(chunk)
        if receives:
            shutil.rmtree(source, ignore_errors=True)  # an unfinished one
    barrier()


def _broadcast_bytes(content: bytes, size: int | None = None) -> bytes:
    """Process 0's bytes, of which there are `size` if given. Collective."""
    if size is None:
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    own = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        own = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own)).astype(np.uint8).tobytes()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} ({error.strerror}): choose another port"
            ) from error


def _wait_for(host: str, port: int, timeout: int) -> None:
    """Returns once process 0 listens. JAX itself would end without a readable message."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 could not be reached at {host}:{port} within {timeout} s "
                    f"({error.strerror or error}): is it running there?"
                ) from error
            time.sleep(0.5)
