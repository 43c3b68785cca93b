"""Several processes that train together, usually one for each machine: how they meet, and which of
them writes where.

They share the batches and the gradients; all else each of them computes for itself, from the same
data and the same seed. The first one writes the workdir. The others read it where they see its
files, and where they do not they get a copy of the checkpoints they need.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqd_jax.core.errors import UserError

CHUNK = 2**26  # bytes
_NUMBERS = itertools.count()


def initialize(
    coordinator: str, count: int | None = None, index: int | None = None, *, timeout: int = 300
) -> None:
    """Makes this process, number `index` of `count`, one of several; before any computation of JAX.

    coordinator: HOST:PORT at which the first process can be reached by all, "auto" where JAX finds
    out everything by itself (on a TPU pod), "" for a process alone. timeout: seconds to wait for
    the others. UserError if the first process cannot be reached.
    """
    if not coordinator:
        if count is not None or index is not None:
            raise UserError(
                "--processes and --process need --coordinator=HOST:PORT, where the first process "
                "can be reached"
            )
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    limits = dict(initialization_timeout=timeout, shutdown_timeout_seconds=30)
    if coordinator == "auto":
        try:
            jax.distributed.initialize(**limits)
        except ValueError as error:
            raise UserError(
                f"--coordinator=auto finds no other processes here ({error}): give HOST:PORT, "
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
    print(f"process {index} of {count}, the first one is at {coordinator}", flush=True)
    _check_port(int(port)) if index == 0 else _reach(host, int(port), timeout)
    # Without "deactivate" JAX would take one GPU for each process under Slurm.
    jax.distributed.initialize(
        coordinator, count, index, cluster_detection_method="deactivate", **limits
    )


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """A process that fails here ends without the others, which then notice: JAX's way out waits for
    them, and they for this process.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def primary_process(folder: Path) -> int:
    """The first of the processes that see the same `folder`, which is made if need be. Every
    process calls it.
    """
    if jax.process_count() == 1:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    mark = lambda number: folder / f".process-{number}"
    mine = secrets.randbits(31)
    mark(mine).touch()
    seen = [mark(number).exists() for number in multihost_utils.process_allgather(np.int32(mine))]
    barrier()
    mark(mine).unlink()
    return seen.index(True)


def is_shared(keeper: int) -> bool:
    """Whether all processes see the first one's folder, from what `primary_process` told each. Every process
    calls it.
    """
    return jax.process_count() == 1 or not multihost_utils.process_allgather(np.int32(keeper)).any()


def barrier() -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"wait {next(_NUMBERS)}")


def broadcast_flag(answer: bool) -> bool:
    """The first process's answer, in all of them. Every process calls it."""
    return (
        answer
        if jax.process_count() == 1
        else bool(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    )


def broadcast_checkpoint(folder: Path, steps: Sequence[int], keeper: int) -> None:
    """Copies the latest checkpoint in `folder` from the first process to those that do not see its
    files. Every process calls it.

    steps: the finished ones that this process sees. keeper: who keeps the folder, from `primary_process`.
    UserError if another process has a later one than the first has.
    """
    if jax.process_count() == 1:
        return
    me = jax.process_index()
    latest = multihost_utils.process_allgather(np.int32(max(steps, default=-1))).tolist()
    if max(latest) > latest[0]:
        raise UserError(
            f"process {latest.index(max(latest))} has a checkpoint of step {max(latest)} in "
            f"{folder}, further than those of "
            "the first process: copy it there, or remove it"
        )
    if min(latest) == latest[0]:
        return
    source, part = folder / str(latest[0]), folder / f"{latest[0]}.part{me}"
    wanted = latest[me] < latest[0] and keeper == me
    files = sorted(f for f in source.rglob("*") if f.is_file()) if me == 0 else []
    listing = _told(
        json.dumps([[f.relative_to(source).as_posix(), f.stat().st_size] for f in files]).encode()
    )
    for name, size in json.loads(listing):
        if wanted:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        with (
            (source / name).open("rb")
            if me == 0
            else (part / name).open("wb")
            if wanted
            else contextlib.nullcontext() as file
        ):
            for start in range(0, size, CHUNK):
                chunk = _told(file.read(CHUNK) if me == 0 else b"", min(CHUNK, size - start))
                if wanted:
                    file.write(chunk)
    if wanted:
        shutil.rmtree(source, ignore_errors=True)  # unfinished
        part.rename(source)
    barrier()


def _told(content: bytes, size: int | None = None) -> bytes:
    """What the first process says, at most `size` bytes long if the others know that."""
    if size is None:
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    said = (
        np.frombuffer(content, np.uint8) if jax.process_index() == 0 else np.zeros(size, np.uint8)
    )
    return np.asarray(multihost_utils.broadcast_one_to_all(said)).astype(np.uint8).tobytes()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"the first process cannot listen on port {port} ({error.strerror}): choose "
                "another one"
            ) from error


def _reach(host: str, port: int, timeout: int) -> None:
    """Returns once the first process listens; JAX itself would end without a sentence."""
    ends = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > ends:
                raise UserError(
                    f"the first process could not be reached at {host}:{port} in {timeout} s "
                    f"({error.strerror or error}): "
                    "is it running there?"
                ) from error
            time.sleep(0.5)
