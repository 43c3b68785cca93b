"""The log of a stage: one JSON line of scalars per logged step, with a checksum, and the same
scalars for TensorBoard.

After a kill, `rewind` drops what was logged after the last checkpoint, so that a resumed run has
one history.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from vqd_jax.core.checksums import SEAL, seal, unsealed
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, set_aside
from vqd_jax.runtime.workdir import StageFolder

PREFIX = "train/"
MEASUREMENTS = (
    "examples_per_second",
    "input_wait",
    "step_time",
    "flops_per_second",
    "mfu",
    "device_memory",
    "device_memory_peak",
    "host_memory",
    "goodput",
)
# the keys of a line that differ between two otherwise equal runs: measurements of time and memory
TIMINGS = frozenset(("time", SEAL, *(PREFIX + name for name in MEASUREMENTS)))


class Log:
    """Appends the metrics of a run to those in `folder`, which is created if need be."""

    def __init__(self, folder: Path):
        self.folder, self._paths = folder, StageFolder(folder)
        self._events: Any = None  # tensorboardX's writer, since the first event
        with self._readable_errors():
            folder.mkdir(parents=True, exist_ok=True)
            if self._paths.metrics.exists():
                self._keep(lambda row: True)  # without a line that a kill has truncated
            self._file = self._paths.metrics.open("a")

    def write(self, step: int, values: Mapping[str, SupportsFloat], prefix: str = "") -> None:
        """Append one line of scalars, named `prefix` + key. It is on disk when this returns."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        values = {prefix + key: float(value) for key, value in values.items()}
        now = time.time()
        in_json = lambda value: value if math.isfinite(value) else None  # JSON has no NaN
        row: dict[str, Any] = {"step": int(step), "time": round(now, 3)}
        row |= {key: in_json(value) for key, value in values.items()}
        with self._readable_errors():
            self._file.write(seal(json.dumps(row)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            scalars = [summary.scalar(key, value) for key, value in values.items()]
            self._add([Event(wall_time=now, step=step, summary=scalar) for scalar in scalars])

    def write_machine(self, facts: Mapping[str, Any]) -> None:
        """Describe the machine in a JSON file beside the metrics, replacing an earlier one."""
        with atomic_write(self._paths.machine, "a log to") as part:
            part.write_text(seal(json.dumps(facts, indent=1)) + "\n")

    def write_parameters(self, table: str) -> Path:
        """Writes the table of parameters to a file beside the metrics, and returns its path."""
        with atomic_write(self._paths.parameters, "a log to") as part:
            part.write_text(table + "\n")
        return self._paths.parameters

    def rewind(self, step: int) -> None:
        """Drop all lines after `step`, where training resumes, and hide them in TensorBoard."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with self._readable_errors():
            self._file.close()
            self._keep(lambda row: row["step"] <= step)
            self._file = self._paths.metrics.open("a")
            if self._paths.tensorboard.is_dir():
                start = SessionLog(status=SessionLog.START)
                self._add([Event(wall_time=time.time(), step=step + 1, session_log=start)])

    def close(self) -> None:
        with self._readable_errors():
            self._file.close()
            if self._events is not None:
                self._events.close()
                self._events = None

    def _add(self, events: Sequence[Any]) -> None:
        """Appends events to TensorBoard's file. `tensorboardX.SummaryWriter` would write them in a
        thread, where a full disk is a traceback instead of an error.
        """
        if not events:
            return
        if self._events is None:
            from tensorboardX.event_file_writer import EventsWriter

            self._paths.tensorboard.mkdir(exist_ok=True)
            # Names have seconds only; a suffix keeps a second writer from overwriting the file.
            suffix = f".{time.time_ns() % 10**9}"
            self._events = EventsWriter(str(self._paths.tensorboard / "events"), suffix)
        for event in events:
            self._events.write_event(event)
        self._events.flush()

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write a log to {self.folder}: {error.strerror}") from error

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites the metrics with the whole lines that are wanted, if that changes them. A file
        with damaged lines is kept under another name.
        """
        path = self._paths.metrics
        rows, damaged = _rows(path)
        new = "".join(line + "\n" for line, row in rows if wanted(row))
        if not damaged and new == path.read_text():
            return
        aside = set_aside(path) if damaged else None
        with atomic_write(path, "a log to") as part:
            part.write_text(new)
        if damaged:
            print(
                f"{damaged} of the {damaged + len(rows)} lines of {path} are damaged: they are "
                f"left out, and the file is now {aside}",
                flush=True,
            )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or of that in the stage folder `path`, oldest first, without
    damaged lines, of which it warns. null is NaN. UserError if there is nothing else.
    """
    if path.is_dir():
        path = StageFolder(path).metrics
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file of metrics")
    try:
        rows, damaged = _rows(path)
    except OSError as error:
        raise UserError(f"cannot read metrics from {path}: {error.strerror}") from error
    if damaged and not rows:
        raise UserError(f"{path} has no line of metrics (a JSON object with a step)")
    if damaged:
        logging.warning("%s of the %s lines of %s are damaged", damaged, damaged + len(rows), path)
    from_json = lambda value: math.nan if value is None else value
    return [{key: from_json(value) for key, value in row.items()} for _, row in rows]


def _rows(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """(line, its object) of each whole line, and the number of damaged ones, to which a truncated
    last one does not count.
    """
    rows, damaged = [], 0
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = unsealed(line)
        except (ValueError, RecursionError):
            row = None
        if _is_row(row):
            rows.append((line, row))
        else:
            damaged += number < len(lines)
    return rows, damaged


def _is_row(row: Any) -> bool:
    """Whether it is an object of numbers, or null, with a step."""
    numbers = lambda value: value is None or type(value) in (int, float)
    return (
        isinstance(row, dict) and type(row.get("step")) is int and all(map(numbers, row.values()))
    )
