"""SIGTERM and Ctrl-C: what works on `noted` finishes its step and saves; everything else ends at once, and can be gone on with."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax

GRACE = 20  # seconds from SIGTERM, within which a step must end; who sends it usually kills after 30
_noting = False
_asked: int | None = None
_answered = threading.Event()


class Terminated(BaseException):
    """Raised where a SIGTERM arrives; like KeyboardInterrupt no Exception, so that nothing goes on after it."""


def listen() -> None:
    """From now on a SIGTERM raises Terminated in the main thread, or is noted. A process that does not come to that in GRACE seconds,
    because it computes, ends with status 0 all the same."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _take)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="SIGTERM").start()


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """In this context the first signal is noted only: what is yielded says whether there was one. `end` answers it."""
    global _noting
    _noting = True
    try:
        yield lambda: _asked is not None
    finally:
        _noting = False
    if _asked is not None:
        end()


def end() -> None:
    """Raises what a signal raises elsewhere; SIGTERM's exception without any, where another process was told to end."""
    _answered.set()
    raise KeyboardInterrupt if _asked == signal.SIGINT else Terminated


def answered() -> None:
    """What was noted is being done: it may take as long as it takes."""
    _answered.set()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside `noted`: here a signal raises again, also one that was noted before."""
    global _noting
    _noting = False
    try:
        if _asked is not None:
            end()
        yield
    finally:
        _noting = True


def _take(number: int, frame: object) -> None:
    global _asked
    if _noting and _asked is None:
        _asked = number
        print("\nsaving after this step, then ending" + ("; Ctrl-C again ends at once" if number == signal.SIGINT else ""),
              file=sys.stderr, flush=True)
        return
    _asked = number
    if jax.distributed.is_initialized():  # nothing is left to agree upon, and the others wait for no one who says goodbye
        print("\nended as asked; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(130 if number == signal.SIGINT else 0)
    end()


def _watch(read: int) -> None:
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM:
            break
    if not _answered.wait(GRACE):
        print(f"\nended: what was being computed did not finish in {GRACE} s; the same command goes on from the last checkpoint",
              file=sys.stderr, flush=True)
        os._exit(0)
