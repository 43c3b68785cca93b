"""Signals that mean "end": Ctrl-C, SIGTERM, SIGHUP (the terminal is closed), and SIGUSR1 and
SIGXCPU of batch systems (the time is nearly over). Inside `deferred`, training finishes its step
and saves; elsewhere the process ends at once. Either way the same command resumes later. Signals
that are ignored when the process starts, as `nohup` does with SIGHUP, stay so.

The exit status is 128 + the signal's number, 143 after SIGTERM and 130 after Ctrl-C: the work is
not done, so a batch system that looks at the status runs the job again.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import jax

ENDING = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU")
    if hasattr(signal, name)  # Windows has the first two
]
GRACE = 20  # seconds from SIGTERM until a step must have ended: senders often kill after 30
LEAVING = 5  # seconds in which threads must end once the process is ending
_deferring = _interruptible = _saving = False
_received: int | None = None
_handled, _answered = threading.Event(), threading.Event()
_previous_hook = sys.unraisablehook


class Terminated(BaseException):
    """Raised on all of them but Ctrl-C. Like KeyboardInterrupt it is no Exception, so that no
    handler goes on.
    """


INTERRUPTS = (Terminated, KeyboardInterrupt)


def install_handlers() -> None:
    """From now on the signals raise one of INTERRUPTS in the main thread, or are deferred. If the
    main thread does not respond to SIGTERM within GRACE seconds, because it computes, the process
    exits all the same; while it saves, it has as long as that takes.
    """
    global _previous_hook
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    _previous_hook, sys.unraisablehook = sys.unraisablehook, _send_again
    if not hasattr(signal, "pthread_kill"):  # Windows, which has no SIGTERM from outside either
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGURG, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="SIGTERM").start()


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defers the first signal: yields a function that says whether one has come. If so, the context
    ends with `interrupt`.
    """
    global _deferring
    _deferring = True
    try:
        yield lambda: _received is not None
    finally:
        _deferring = False
    if _received is not None:
        interrupt()


def interrupt() -> NoReturn:
    """Raises the exception of the deferred signal; Terminated if it came to another process. The
    process exits within LEAVING seconds, even if a thread hangs.
    """
    _answered.set()
    leave = threading.Timer(LEAVING, os._exit, (status(),))
    leave.daemon = True
    leave.start()
    _raise()


def acknowledge() -> None:
    """The deferred signal is being handled: from now on there is no time limit."""
    _answered.set()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside `deferred`, a context in which a signal raises one of INTERRUPTS; `interrupt` should
    follow.
    """
    global _deferring, _interruptible
    _deferring, _interruptible = False, True
    try:
        yield
    finally:
        _deferring, _interruptible = True, False


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """A context without the time limit after SIGTERM."""
    global _saving
    _saving = True
    try:
        yield
    finally:
        _saving = False


def status() -> int:
    """The exit status of a process that was interrupted: by its signal, or as another one was."""
    return 128 + (_received or signal.SIGTERM)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    _handled.set()
    if _deferring and (_received is None or number != signal.SIGINT):
        if _received is None:
            again = "; press Ctrl-C again to exit at once" if number == signal.SIGINT else ""
            _say(f"saving after this step, then exiting{again}")
            _received = number
        return
    _received = number
    if _interruptible:
        _answered.set()
        _raise()
    if jax.distributed.is_initialized():  # a normal exit would wait for the other processes
        _say("terminated; the same command resumes from the last checkpoint")
        os._exit(status())
    interrupt()


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends the signal again if its exception was raised where Python only prints exceptions: in
    destructors and in callbacks of the garbage collector.
    """
    if isinstance(unraisable.exc_value, INTERRUPTS):
        threading.Timer(0.01, os.kill, (os.getpid(), _received or signal.SIGTERM)).start()
    else:
        _previous_hook(unraisable)


def _raise() -> NoReturn:
    raise KeyboardInterrupt if _received == signal.SIGINT else Terminated


def _watch(read: int) -> None:
    """Enforces GRACE after a SIGTERM, whose number arrives on the file descriptor `read`."""
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM:
            break
    deadline = time.monotonic() + GRACE
    main = threading.main_thread().ident or 0
    while not _answered.wait(1):
        if not _handled.is_set():
            signal.pthread_kill(main, signal.SIGURG)  # interrupts a system call: handlers run
        if _saving:
            deadline = time.monotonic() + GRACE
        elif time.monotonic() > deadline:
            _say(
                f"terminated: the computation did not finish within {GRACE} s; the same command "
                "resumes from the last checkpoint"
            )
            os._exit(status())


def _say(sentence: str) -> None:
    print(f"\n{sentence}", file=sys.stderr, flush=True)
