"""A run that hangs ends: after too long without a step the stacks of all threads are printed, and
the process exits.
"""

import collections
import faulthandler
import os
import statistics
import sys
import threading
import time

STATUS = 3
TICK = 1.0  # seconds
KNOWN = 3  # steps whose time must be known first


class Watchdog:
    """Watches between `beat` and `beat`, or `rest`; use it in a `with`.

    Args:
      factor, least: the limit is `factor` times the median of the last 100 steps, at least `least`
        seconds; factor 0 is no limit. Only time in which this process could run counts, not that in
        which it was stopped.
      what: the name of what should move on, for the message.
    """

    def __init__(self, factor: float, least: float, what: str):
        self._factor, self._least, self._what = factor, least, what
        self._times = collections.deque(maxlen=100)
        self._last = None
        self._waited = 0.0
        self._ended = threading.Event()

    def beat(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last, self._waited = now, 0.0

    def rest(self) -> None:
        """Something else than steps follows."""
        self._last = None

    def __enter__(self) -> "Watchdog":
        if self._factor:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()

    @property
    def limit(self) -> float:
        """Seconds; infinite while too few steps are known."""
        return (
            max(self._factor * statistics.median([*self._times]), self._least)
            if len(self._times) >= KNOWN
            else float("inf")
        )

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            if self._last is None:
                continue
            self._waited += TICK
            if self._waited > self.limit:
                usual = statistics.median([*self._times])
                print(
                    f"\nerror: {self._what}: no step for {self._waited:.0f} s, where one takes "
                    f"{usual:.3g} s; the stacks "
                    "of all threads follow; the same command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STATUS)
