"""Protects a run from bad numbers and from hanging.

Bad numbers take training back to its last checkpoint, and it goes on without the batches that led
to them. Which batches these are depends only on the data and on the checkpoint, so a run that was
killed and resumed skips the same ones.
"""

import collections
import dataclasses
import faulthandler
import math
import signal
import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import numpy as np
from clu.metrics import Average

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace

WINDOW = 128  # losses that a new one is compared with
MIN_LOSSES = 32  # before the first comparison
RECENT = 32  # losses that are compared together
MOST = 24  # of them
FORGET = 0.9995  # of the peak, each step
FLOOR = 1e-6  # of a median; rounding errors of a loss of zero
MIN_TIMES = 3  # step times before the watchdog has a limit
STDERR = 2  # file descriptor


class Fault(Exception):
    """Bad numbers in a step; the message says which. `spike`: whether it is a single high loss."""

    def __init__(self, step: int, cause: str, spike: bool = False):
        super().__init__(cause)
        self.step = step
        self.spike = spike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """When training goes back to its last checkpoint, and when it gives up.

    The loss of a model that knows its images by heart is tiny and heavy-tailed: healthy batches may
    have a hundred times the median. So a single loss is compared with the highest so far, and lower
    ones are bad only if they stay.

    Attributes:
      spike: a loss is bad if, as a multiple of the median of the last 128, it exceeds the highest
        such multiple of about the last 2,000 steps by this factor; so are 24 of the last 32
        losses above the median of those before by the square root of this factor. 0 checks for NaN
        and infinity only.
      tries: faults in a row, without a checkpoint between them, before the run ends. The first
        skips one batch, the second two, the third four.
      hang: the run ends if a step takes longer than this factor times the median of the last 100
        steps, and longer than `hang_seconds`; 0 turns this off.
    """

    spike: float
    tries: int
    hang: float
    hang_seconds: float

    def __post_init__(self):
        if min(self.spike, self.hang, self.hang_seconds) < 0 or self.tries < 1:
            raise UserError(
                "guard.spike, guard.hang and guard.hang_seconds must not be negative, and "
                "guard.tries must be at least 1"
            )

    def check(
        self, step: int, metrics: Mapping[str, float], loss: float, record: "TrainingRecord"
    ) -> None:
        """Raises Fault if the loss or gradient is not finite, or if `loss` is a spike after those
        of the record, or one of many high ones; then its step is that of the first of them.
        """
        for name in ("loss", "gradient_norm"):
            if name in metrics and not math.isfinite(metrics[name]):
                raise Fault(step, f"{name.replace('_', ' ')} {metrics[name]}")
        losses = [*record.losses, loss]
        if not self.spike or len(losses) <= MIN_LOSSES:
            return
        ratio = record.ratio(loss)
        if ratio > self.spike * record.peak:
            raise Fault(step, f"loss {loss:.4g} after {loss / ratio:.4g}", spike=True)
        before, recent = losses[:-RECENT], losses[-RECENT:]
        if len(before) >= MIN_LOSSES:
            limit = math.sqrt(self.spike) * _median(before)
            high = [i for i, x in enumerate(recent) if x > limit]
            if len(high) >= MOST:
                usual = f"{statistics.median(recent):.4g} after {_median(before):.4g}"
                raise Fault(step - RECENT + 1 + high[0], f"{len(high)} losses around {usual}")


@dataclasses.dataclass
class TrainingRecord:
    """What a checkpoint stores about the steps so far, beside the state.

    Attributes:
      pace: how the steps since the batch size last changed count.
      skipped: batches since then that were left out, ascending.
      losses: the last ones, for `Guard.check`.
      peak: the highest ratio of a loss to the median of those before it, slowly forgotten.
      averages: of each metric since the last line of the log, in float64.
    """

    pace: Pace
    skipped: list[int] = dataclasses.field(default_factory=list)
    losses: collections.deque[float] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=WINDOW)
    )
    peak: float = 1.0
    averages: dict[str, Average] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], batch_size: int) -> "TrainingRecord":
        """The record that `to_json` gave. Earlier versions stored all values of a metric, where now
        their sum and count are, no peak, and no pace: then `batch_size` has always been the same.
        """
        pace = Pace(**stored["pace"]) if "pace" in stored else Pace(batch_size)
        record = cls(pace, list(stored["skipped"]))
        for loss in stored["losses"]:
            record._add_loss(loss)
        record.peak = stored.get("peak", record.peak)
        for name, values in stored["window"].items():
            if isinstance(values, list):
                values = {"total": math.fsum(values), "count": len(values)}
            record.averages[name] = _average(**values)
        return record

    def to_json(self) -> dict[str, Any]:
        averages = {
            name: {"total": float(average.total), "count": int(average.count)}
            for name, average in self.averages.items()
        }
        return {
            "pace": dataclasses.asdict(self.pace),
            "skipped": self.skipped,
            "losses": [*self.losses],
            "peak": self.peak,
            "window": averages,
        }

    def change_batch_size(self, size: int, step: int) -> None:
        """Goes on from a step with batches of another size: after the last example of that step,
        and without batches that have a skipped example.
        """
        old = self.pace
        if size == old.batch_size:
            return
        place = lambda batch: old.position + batch * old.batch_size
        position = place(self.batch(step) + 1) if step > old.step else old.position
        ahead = [place(b) + i for b in self.skipped for i in range(old.batch_size)]
        self.skipped = sorted({(p - position) // size for p in ahead if p >= position})
        self.pace = Pace(size, step, old.examples_at(step), position)

    def batch(self, step: int) -> int:
        """The batch that a step uses: the first step has the first one that is not skipped."""
        batch = step - self.pace.step - 1
        for skipped in self.skipped:
            batch += skipped <= batch
        return batch

    def last_batches(self, first: int, step: int, count: int) -> list[int]:
        """The batches of the last `count` steps up to `step`, without those up to `first`."""
        return [self.batch(s) for s in range(max(first + 1, step - count + 1), step + 1)]

    def skip(self, batches: Iterable[int]) -> None:
        self.skipped = sorted({*self.skipped, *batches})

    def add(self, metrics: Mapping[str, float], loss: float) -> None:
        """Records the metrics of a step; `loss` is the one that `Guard.check` compares."""
        self._add_loss(loss)
        for name, value in metrics.items():
            new, old = _average(value, 1), self.averages.get(name)
            self.averages[name] = new if old is None else old.merge(new)

    def ratio(self, loss: float) -> float:
        """A loss as a multiple of the median of the last ones."""
        return loss / _median(self.losses) if self.losses else 1.0

    def _add_loss(self, loss: float) -> None:
        self.peak = max(1.0, FORGET * self.peak, self.ratio(loss))
        self.losses.append(loss)

    def pop_means(self) -> dict[str, float]:
        """The means of all metrics since the last call."""
        means = {name: float(average.compute()) for name, average in self.averages.items()}
        self.averages.clear()
        return means


def _median(losses: Iterable[float]) -> float:
    """The magnitude of the median, not zero."""
    return max(abs(statistics.median(losses)), FLOOR)


def _average(total: float, count: int) -> Average:
    """In float64 on the host, so that what a checkpoint stores as JSON is exact."""
    return Average(total=np.float64(total), count=np.int64(count))


class Watchdog:
    """Ends a run that hangs: prints the stacks of all threads and exits with status 1.

    Call `step` after each step and `pause` before anything else that may take long; use it in a
    `with`. The timer is `faulthandler`'s, which needs neither the interpreter nor its lock. Inside
    the `with`, Ctrl-Z (SIGTSTP) stops the timer before it stops the process, so that the process
    may be resumed at any later time.

    Args:
      factor, seconds: the limit is `factor` times the median time of the last 100 steps, and at
        least `seconds`; factor 0 sets none.
      name: of what is trained, for the message.
    """

    def __init__(self, factor: float, seconds: float, name: str):
        self._factor, self._seconds, self._name = factor, seconds, name
        self._times = collections.deque(maxlen=100)
        self._last = None
        self._announced = False

    def step(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last = now
        if self._factor and len(self._times) >= MIN_TIMES:
            if not self._announced:
                self._announce()
            faulthandler.dump_traceback_later(self.limit, exit=True, file=STDERR)

    def pause(self) -> None:
        """Sets no limit until the next step ends."""
        self._last = None
        if self._announced:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "Watchdog":
        self._suspends = (
            hasattr(signal, "SIGTSTP")  # not on Windows
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
        )
        if self._suspends:
            signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._suspends:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self.pause()

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.pause()
        signal.raise_signal(signal.SIGSTOP)

    @property
    def limit(self) -> float:
        """Seconds."""
        return max(self._factor * statistics.median(self._times), self._seconds)

    def _announce(self) -> None:
        """The sentence comes first: at the timeout there is only room for the stacks."""
        print(
            f"{self._name}: if a step takes more than about {self.limit:.0f} s, the run ends with "
            "the stacks of its threads; the same command then resumes from the last checkpoint",
            flush=True,
        )
        self._announced = True
