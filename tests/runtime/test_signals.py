"""What signals need of the system. Their effect on training is tested in tests/train/test_loop.py and
tests/launch, that on several processes in test_distributed.py.
"""

import signal
import subprocess
import sys

import pytest

from helpers import ROOT

WITHOUT_POSIX = """
import signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGURG", "SIGUSR1", "pthread_kill"):
    delattr(signal, name)
import vqd_jax.core.files, vqd_jax.runtime.workdir
from vqd_jax.runtime import signals
signals.install_handlers()
try:
    signal.raise_signal(signal.SIGTERM)
except signals.Terminated:
    print("terminated")
"""


def test_nothing_of_posix_is_needed():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, "terminated\n"), done.stderr


EACH = """
import os, signal, sys, time
from vqd_jax.runtime import signals

def deferred(number):
    signal.signal(number, signal.SIG_DFL)  # as nohup may have left it ignored
    signals.install_handlers()
    try:
        with signals.deferred() as asked:
            signal.raise_signal(number)
            assert asked()
            if number != signal.SIGINT:
                signal.raise_signal(signal.SIGTERM)  # later ones change nothing
                signal.raise_signal(number)
    except signals.INTERRUPTS:
        os._exit(signals.status())

def ignored(number):
    signal.signal(number, signal.SIG_IGN)
    signals.install_handlers()
    with signals.deferred() as asked:
        signal.raise_signal(number)
        os._exit(99 if asked() else 0)

def during_a_slow_save(number):
    signals.GRACE = 0.5
    signals.install_handlers()
    try:
        with signals.deferred() as asked:
            with signals.saving():
                signal.raise_signal(number)
                time.sleep(4)
            assert asked()
    except signals.Terminated:
        os._exit(1)  # the save has ended

def during_a_long_step(number):
    signals.GRACE = 0.5
    signals.install_handlers()
    with signals.deferred():
        signal.raise_signal(number)
        time.sleep(60)

if not (child := os.fork()):
    globals()[sys.argv[1]](int(sys.argv[2]))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def outcome(case, number):
    """The exit status of a process of its own in one of the cases of EACH."""
    line = [sys.executable, "-W", "ignore", "-c", EACH, case, str(int(number))]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60)
    return int(done.stdout), done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_every_signal_that_means_end_is_deferred_until_the_step_is_saved(name):
    number = getattr(signal, name)
    status, said = outcome("deferred", number)
    assert status == 128 + number and said.count("saving after this step, then exiting") == 1


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    assert outcome("ignored", signal.SIGHUP)[0] == 0


def test_a_slow_save_is_waited_for_and_a_long_step_is_not():
    assert outcome("during_a_slow_save", signal.SIGTERM)[0] == 1
    status, said = outcome("during_a_long_step", signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and "did not finish within" in said


def test_ctrl_c_during_the_imports_is_one_sentence():
    arguments = ["-X", "importtime", "-m", "vqd_jax", "train", "--config=configs/emoji.py"]
    running = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while "jax._src" not in running.stderr.readline():
        pass
    running.send_signal(signal.SIGINT)
    *_, said = running.communicate(timeout=60)[1].splitlines()
    assert (running.returncode, said) == (130, "interrupted; the same command starts over")
