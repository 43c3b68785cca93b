"""The log of a run: one JSON line per step in metrics.jsonl, and the same scalars, with pictures,
for TensorBoard.

What a killed run wrote after its last checkpoint is taken back by `rewind`, so that a resumed run
has one history.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError

PREFIX = "train/"
# what differs between two runs that are otherwise equal: measurements of time and memory, as the
# log names them
TIMINGS = frozenset(
    (
        "time",
        *(
            PREFIX + name
            for name in (
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
        ),
    )
)
METRICS = "metrics.jsonl"


class Log:
    """Metrics of a run in `folder`, appended to what is there."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._tensorboard = None
        with self._written():
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / METRICS).exists():
                self._keep(lambda row: True)  # drops a line that a kill has cut
            self._file = (self.folder / METRICS).open("a")

    def write(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Append one line of scalars, named `prefix` + key; on disk when it returns."""
        values = {prefix + key: float(value) for key, value in values.items()}
        now = time.time()
        finite = {
            key: value if math.isfinite(value) else None for key, value in values.items()
        }  # JSON has no NaN
        row = {"step": int(step), "time": round(now, 3)} | finite
        from tensorboardX import summary

        with self._written():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._show(step, now, *(summary.scalar(key, value) for key, value in values.items()))

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 picture in TensorBoard."""
        from tensorboardX import summary

        with self._written():
            self._show(step, time.time(), summary.image(tag, image, dataformats="HWC"))

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep facts that are no metrics beside them, in a JSON file of that name."""
        with self._written():
            self._replace(self.folder / name, json.dumps(facts, indent=1) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`, on resuming from it; TensorBoard is told, too."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with self._written():
            self._file.close()
            self._keep(lambda row: row["step"] <= step)
            self._file = (self.folder / METRICS).open("a")
            if (self.folder / "tensorboard").is_dir():
                self._events(
                    Event(
                        wall_time=time.time(),
                        step=step + 1,
                        session_log=SessionLog(status=SessionLog.START),
                    )
                )

    def close(self) -> None:
        with self._written():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
                self._tensorboard = None

    def _show(self, step: int, now: float, *summaries: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events(*(Event(wall_time=now, step=step, summary=each) for each in summaries))

    def _events(self, *events: Any) -> None:
        """Appended at once: SummaryWriter has a thread for it, which a full disk ends, and then
        whoever logs waits forever.
        """
        if self._tensorboard is None:
            from tensorboardX.event_file_writer import EventsWriter

            folder = self.folder / "tensorboard"
            folder.mkdir(exist_ok=True)
            # Files are named after the second: a suffix, or one opened twice within it would
            # overwrite itself.
            self._tensorboard = EventsWriter(str(folder / "events"), f".{time.time_ns() % 10**9}")
        for event in events:
            self._tensorboard.write_event(event)
        self._tensorboard.flush()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write a log to {self.folder}: {error.strerror}") from error

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file, if that changes it, with the whole lines that are wanted."""
        path = self.folder / METRICS
        new = "".join(line + "\n" for line, row in _rows(path) if wanted(row))
        if new != path.read_text():
            self._replace(path, new)

    @staticmethod
    def _replace(path: Path, content: str) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(content)
        temporary.replace(path)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or of the one in the folder `path`, oldest first; a cut last
    line is left out.
    """
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    try:
        return [
            {key: math.nan if value is None else value for key, value in row.items()}
            for _, row in _rows(path)
        ]
    except OSError as error:
        raise UserError(f"cannot read metrics from {path}: {error.strerror}") from error


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines and what they say, up to a cut last line."""
    rows = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "step" in row:
            rows.append((line, row))
        elif number < len(lines):
            raise UserError(
                f"line {number} of {path} is not a line of metrics, which is a JSON object with a "
                "step"
            )
    return rows
