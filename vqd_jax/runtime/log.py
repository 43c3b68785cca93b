"""The log of a stage: one JSON line of scalars per logged step, with a checksum. It is the record;
trackers show the same scalars elsewhere.

After a kill, `rewind` drops what was logged after the last checkpoint, so that a resumed run has
one history.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from vqd_jax.core.checksums import SEAL, seal, unsealed
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, set_aside
from vqd_jax.runtime.trackers import TensorBoard, Tracker
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
    """Appends the metrics of a run to those in `folder`, which is created if need be, and gives
    them to `trackers`: to TensorBoard, and what is added to the list.
    """

    def __init__(self, folder: Path):
        self.folder, self._paths = folder, StageFolder(folder)
        self.trackers: list[Tracker] = [TensorBoard(self._paths.tensorboard)]
        with self._readable_errors():
            folder.mkdir(parents=True, exist_ok=True)
            if self._paths.metrics.exists():
                self._keep(lambda row: True)  # without a line that a kill has truncated
            self._file = self._paths.metrics.open("a")

    def write(
        self,
        step: int,
        values: Mapping[str, SupportsFloat],
        prefix: str = "",
        images: Mapping[str, Path] | None = None,
    ) -> None:
        """Append one line of scalars, named `prefix` + key. It is on disk when this returns.
        Trackers also get the files of `images`, whose names have the same prefix.
        """
        numbers = {prefix + key: float(value) for key, value in values.items()}
        files = {prefix + key: path for key, path in (images or {}).items()}
        now = time.time()
        in_json = lambda value: value if math.isfinite(value) else None  # JSON has no NaN
        row: dict[str, Any] = {"step": int(step), "time": round(now, 3)}
        row |= {key: in_json(value) for key, value in numbers.items()}
        with self._readable_errors():
            self._file.write(seal(json.dumps(row)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            for tracker in self.trackers:
                tracker.write(int(step), now, numbers, files)

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
        """Drop all lines after `step`, where training resumes."""
        with self._readable_errors():
            self._file.close()
            self._keep(lambda row: row["step"] <= step)
            self._file = self._paths.metrics.open("a")
            for tracker in self.trackers:
                tracker.rewind(step)

    def close(self) -> None:
        with self._readable_errors():
            self._file.close()
            for tracker in self.trackers:
                tracker.close()

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
        rows, damaged, _ = _rows(path)
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
        rows, damaged, cut = _rows(path)
    except OSError as error:
        raise UserError(f"cannot read metrics from {path}: {error.strerror}") from error
    if damaged and not rows:
        raise UserError(f"{path} has no line of metrics (a JSON object with a step)")
    if damaged:
        logging.warning("%s of the %s lines of %s are damaged", damaged, damaged + len(rows), path)
    if cut:
        logging.warning("the last line of %s is incomplete, as after a kill, and is left out", path)
    from_json = lambda value: math.nan if value is None else value
    return [{key: from_json(value) for key, value in row.items()} for _, row in rows]


def _rows(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], int, bool]:
    """(line, its object) of each whole line, the number of damaged ones, and whether there is a
    cut one beside them: the last one, without its end.
    """
    rows, damaged, cut = [], 0, False
    content = path.read_text(errors="replace")
    lines = content.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = unsealed(line)
        except (ValueError, RecursionError):
            row = None
        if _is_row(row):
            rows.append((line, row))
        elif number == len(lines) and not content.endswith("\n"):
            cut = True
        else:
            damaged += 1
    return rows, damaged, cut


def _is_row(row: Any) -> bool:
    """Whether it is an object of numbers, or null, with a step."""
    numbers = lambda value: value is None or type(value) in (int, float)
    return (
        isinstance(row, dict) and type(row.get("step")) is int and all(map(numbers, row.values()))
    )
