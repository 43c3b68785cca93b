"""Bad numbers: which steps training takes back, and which batches it leaves out then.

A fault follows from the batches and from what the last checkpoint holds, so that a run that was
killed meets the same ones again.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

from vqd_jax.core.errors import UserError

WINDOW = 64  # steps that a loss is compared with
ENOUGH = 16  # of them, before it is


class Fault(Exception):
    """The numbers of a step are bad; the message says which."""

    def __init__(self, step: int, what: str):
        super().__init__(what)
        self.step = step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """When training goes back to its last checkpoint, and when it gives up.

    Attributes:
      spike: a loss is bad that lies above the median of the last 64 by so many times that median;
      0: only if it is not finite.
      tries: faults in a row, with no checkpoint between them, after which the run ends; the second
      leaves out two batches, the third four.
      hang: median steps without the end of one after which the run ends, but at least
      `hang_seconds`; 0: never.
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
        self, step: int, values: dict[str, float], loss: float, before: Iterable[float]
    ) -> None:
        """Fault if a loss or gradient of the step is not finite, or if the loss has jumped from
        those `before` it.
        """
        for name in ("loss", "gradient_norm"):
            if name in values and not math.isfinite(values[name]):
                raise Fault(step, f"{name.replace('_', ' ')} {values[name]}")
        before = [*before]
        if self.spike and len(before) >= ENOUGH:
            usual = statistics.median(before)
            if loss - usual > self.spike * abs(usual):
                raise Fault(step, f"loss {loss:.4g} after {usual:.4g}")


@dataclasses.dataclass
class LossRecord:
    """What a checkpoint knows of the steps before it, beside the state.

    Attributes:
      skipped: batches that were left out, ascending. losses: the last ones, for comparison. window:
      metric -> its values since the last line of the log.
    """

    skipped: list[int] = dataclasses.field(default_factory=list)
    losses: collections.deque[float] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=WINDOW)
    )
    window: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    @classmethod
    def of(cls, stored: dict[str, Any] | None) -> "Record":
        record = cls()
        if stored:
            record.skipped += stored["skipped"]
            record.losses.extend(stored["losses"])
            record.window.update(stored["window"])
        return record

    def stored(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"skipped": self.skipped, "losses": [*self.losses], "window": dict(self.window)}

    def batch(self, step: int) -> int:
        """The batch of a step: the first step has the first one that is not left out."""
        at = step - 1
        for skipped in self.skipped:
            at += skipped <= at
        return at

    def up_to(self, first: int, step: int, count: int) -> list[int]:
        """The last `count` batches up to that of `step`, but none that a step up to `first` had."""
        return [self.batch(s) for s in range(max(first + 1, step - count + 1), step + 1)]

    def leave_out(self, batches: Iterable[int]) -> None:
        self.skipped = sorted({*self.skipped, *batches})

    def add(self, values: dict[str, float], loss: float) -> None:
        self.losses.append(loss)
        for name, value in values.items():
            self.window[name].append(value)

    def means(self) -> dict[str, float]:
        """Of the window, which begins anew."""
        means = {name: math.fsum(values) / len(values) for name, values in self.window.items()}
        self.window.clear()
        return means
