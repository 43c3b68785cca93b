"""The speed of a run: step time, wait for input, FLOP/s, memory and goodput.

Goodput is (time of the steps that were kept) / (time since the stage began): the rest went into
starting, compiling, evaluating, saving, pauses and repeated steps. It is computed from the log,
whose lines of lost steps are removed when a run resumes before them.
"""

import contextlib
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from vqd_jax.runtime.hardware import chip
from vqd_jax.runtime.log import PREFIX, Log, read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step computes, and on which hardware.

    Attributes:
      flops, examples: of the global batch.
      devices: of all processes together.
      kind: of these devices, as JAX names it.
    """

    flops: int
    examples: int
    devices: int
    kind: str

    @property
    def peak(self) -> float | None:
        """Peak FLOP/s of all devices together; None if it is unknown."""
        known = chip(self.kind)
        return known and known.peak * self.devices

    @property
    def text(self) -> str:
        peak = "peak unknown: no mfu"
        if self.peak:
            peak = f"at most {_units(self.peak)}FLOP/s in bfloat16"
        return f"{_units(self.flops)}FLOP a step, on {self.devices} x {self.kind} ({peak})"


class Meter:
    """Measures the steps after `first`. Call `step` after each, `pause` after anything else, and
    `rates` for each line of the log.

    `log` must have been rewound to `first`. A fresh one gets a line without metrics, whose time is
    that at which the stage began.
    """

    def __init__(self, cost: Cost, log: Log, first: int):
        self.cost = cost
        rows = read_metrics(log.folder)
        if not rows:
            log.write(first, {})
            rows = read_metrics(log.folder)
        self._began = rows[0]["time"]
        self._useful, self._last = useful_seconds(rows)
        self._laps, self._waited, self._lap = [], 0.0, time.perf_counter()
        self._compiled = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time counts as waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def step(self) -> None:
        now = time.perf_counter()
        self._laps.append(now - self._lap)
        self._lap = now

    def pause(self) -> None:
        """The time since the last step belongs to no step."""
        self._lap = time.perf_counter()

    def rates(self, step: int) -> dict[str, float]:
        """Metrics of the steps since the last call; unknown ones are left out.

        The step time is the median of these steps, without the very first, which compiles.
        """
        seconds, steady = sum(self._laps), self._laps[not self._compiled :]
        per_second = len(self._laps) / seconds
        out = {
            "examples_per_second": per_second * self.cost.examples,
            "input_wait": self._waited / seconds,
            "flops_per_second": per_second * self.cost.flops,
        }
        if self.cost.peak:
            out["mfu"] = out["flops_per_second"] / self.cost.peak
        if steady:
            out["step_time"] = statistics.median(steady)
            self._useful += (step - self._last) * out["step_time"]
            self._last = step
        self._compiled, self._laps, self._waited = True, [], 0.0
        return out | memory() | {"goodput": min(self._useful / (time.time() - self._began), 1.0)}


def useful_seconds(rows: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """(seconds of the steps in a log, the last of these steps). Each line counts its step time for
    all steps since the line before.
    """
    lines = [rows[0], *(row for row in rows if PREFIX + "step_time" in row)]
    seconds = sum(
        (row["step"] - before["step"]) * row[PREFIX + "step_time"]
        for before, row in itertools.pairwise(lines)
    )
    return float(seconds), lines[-1]["step"]


def memory() -> dict[str, int]:
    """Bytes in use and their maximum so far on the fullest local device; the resident memory of the
    process where devices do not report theirs, as on CPUs.
    """
    stats = [s for s in (device.memory_stats() for device in jax.local_devices()) if s]
    if stats:
        return {
            "device_memory": max(s["bytes_in_use"] for s in stats),
            "device_memory_peak": max(s.get("peak_bytes_in_use", 0) for s in stats),
        }
    resident = Path("/proc/self/statm")
    if not resident.exists():  # not Linux
        return {}
    return {"host_memory": int(resident.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}


def _units(value: float | int) -> str:
    """Three digits and an SI prefix: 1.5e12 is "1.5 T"."""
    for letter, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value / 1e6:.3g} M"
