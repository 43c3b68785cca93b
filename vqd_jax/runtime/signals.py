"""SIGTERM and Ctrl-C: what works on `noted` finishes its step and saves; everything else ends at
once, and can be gone on with.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

GRACE = (
    20  # seconds from SIGTERM, within which a step must end; who sends it usually kills after 30
)
LEAVING = 5  # seconds in which threads must end at the end
_noting = _breaking = False
_asked: int | None = None
_taken, _answered = threading.Event(), threading.Event()


class Terminated(BaseException):
    """Raised where a SIGTERM arrives; like KeyboardInterrupt no Exception, so that nothing goes on
    after it.
    """


ENDINGS = (Terminated, KeyboardInterrupt)


def listen() -> None:
    """From now on a SIGTERM raises Terminated in the main thread, or is noted. A process that does
    not come to that in GRACE seconds, because it computes, ends with status 0 all the same.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _take)
    sys.unraisablehook = _again
    signal.signal(signal.SIGURG, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="SIGTERM").start()


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """In this context the first signal is noted only: what is yielded says whether there was one.
    `end` answers it.
    """
    global _noting
    _noting = True
    try:
        yield lambda: _asked is not None
    finally:
        _noting = False
    if _asked is not None:
        end()


def end() -> NoReturn:
    """Raises what a signal raises elsewhere; SIGTERM's exception without any, where another process
    was told to end.
    """
    _answered.set()
    leave = threading.Timer(
        LEAVING, os._exit, (130 if _asked == signal.SIGINT else 0,)
    )  # a thread may hang in what it reads
    leave.daemon = True
    leave.start()
    _raise()


def acknowledge() -> None:
    """What was noted is being done: it may take as long as it takes."""
    _answered.set()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside `noted`: here a signal raises one of ENDINGS again, to be followed by `end`."""
    global _noting, _breaking
    _noting, _breaking = False, True
    try:
        yield
    finally:
        _noting, _breaking = True, False


def _take(number: int, frame: object) -> None:
    global _asked
    _taken.set()
    if _noting and _asked is None:
        _asked = number
        print(
            "\nsaving after this step, then ending"
            + ("; Ctrl-C again ends at once" if number == signal.SIGINT else ""),
            file=sys.stderr,
            flush=True,
        )
        return
    _asked = number
    if _breaking:
        _answered.set()
        _raise()
    if (
        jax.distributed.is_initialized()
    ):  # nothing is left to agree upon, and the others wait for no one who says goodbye
        print(
            "\nended as asked; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130 if number == signal.SIGINT else 0)
    end()


def _again(lost: Any) -> None:
    """Sends the signal once more where Python would print what was raised and go on: in destructors
    and callbacks, as of its garbage collector.
    """
    if isinstance(lost.exc_value, ENDINGS):
        threading.Timer(0.01, os.kill, (os.getpid(), _asked or signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(lost)


def _raise() -> NoReturn:
    raise KeyboardInterrupt if _asked == signal.SIGINT else Terminated


def _watch(read: int) -> None:
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM:
            break
    ends = time.monotonic() + GRACE
    while not _taken.wait(1) and time.monotonic() < ends:
        signal.pthread_kill(
            threading.main_thread().ident, signal.SIGURG
        )  # it may wait in the system without having noticed
    if not _answered.wait(max(ends - time.monotonic(), 0)):
        print(
            f"\nended: what was being computed did not finish in {GRACE} s; the same command goes "
            "on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(0)
