"""How fast a run is and what it spends: step time, wait for input, operations per second, memory,
and the share of its time that counts.

Goodput is (time of the steps that were kept) / (time since the stage began): the rest went into
starting, compiling, evaluating, saving, pauses and steps that were done again. It is computed from
the log, which loses the lines of lost steps when a run goes on before them.
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
    """What a step is: operations and examples of the global batch, and the devices, of all
    processes, that share them.
    """

    flops: int
    examples: int
    devices: int
    kind: str  # of the devices, as JAX names it

    @property
    def peak(self) -> float | None:
        """FLOP/s of all devices together at most, None if nobody knows."""
        one = chip(self.kind)
        return one and one.peak * self.devices

    @property
    def text(self) -> str:
        peak = (
            f"at most {_units(self.peak)}FLOP/s in bfloat16"
            if self.peak
            else "peak unknown: no mfu"
        )
        return f"{_units(self.flops)}FLOP a step, on {self.devices} x {self.kind} ({peak})"


class Meter:
    """Measures the steps after `first`: `step` is called after each, `pause` after what is none,
    `rates` where the log gets a line.

    The log is one that `rewind` has cut to `first`; a fresh one gets a line without metrics, which
    says when the stage began.
    """

    def __init__(self, cost: Cost, log: Log, first: int):
        self.cost = cost
        rows = read_metrics(log.folder)
        if not rows:
            log.write(first, {})
            rows = read_metrics(log.folder)
        self._began, (self._kept, self._last) = rows[0]["time"], kept(rows)
        self._laps, self._waited, self._lap = [], 0.0, time.perf_counter()
        self._compiled = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def step(self) -> None:
        now = time.perf_counter()
        self._laps.append(now - self._lap)
        self._lap = now

    def pause(self) -> None:
        """What came after the last step was not part of any."""
        self._lap = time.perf_counter()

    def rates(self, step: int) -> dict[str, float]:
        """Of the steps since the last call, with the names of TIMINGS; what is not known is left
        out.

        The step time is the median of those steps, without the first of all, which compiles.
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
            self._kept += (step - self._last) * out["step_time"]
            self._last = step
        self._compiled, self._laps, self._waited = True, [], 0.0
        return out | memory() | {"goodput": min(self._kept / (time.time() - self._began), 1.0)}


def kept(rows: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """Seconds of the steps in a log, in each line the usual time of one times the steps since the
    line before; and the last of them.
    """
    lines = [rows[0], *(row for row in rows if PREFIX + "step_time" in row)]
    seconds = sum(
        (row["step"] - before["step"]) * row[PREFIX + "step_time"]
        for before, row in itertools.pairwise(lines)
    )
    return float(seconds), lines[-1]["step"]


def memory() -> dict[str, int]:
    """Bytes in use, and at most so far, on the fullest device here; of the process where devices do
    not say, as CPUs.
    """
    stats = [s for s in (device.memory_stats() for device in jax.local_devices()) if s]
    if stats:
        return {
            "device_memory": max(s["bytes_in_use"] for s in stats),
            "device_memory_peak": max(s.get("peak_bytes_in_use", 0) for s in stats),
        }
    resident = Path("/proc/self/statm")  # of Linux
    return (
        {"host_memory": int(resident.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
        if resident.exists()
        else {}
    )


def _units(value: float | int) -> str:
    """Three digits and the letter of a power of a thousand: 1.5e12 is "1.5 T"."""
    for letter, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value / 1e6:.3g} M"
