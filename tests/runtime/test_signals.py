"""What signals need of the system. Their effect on training is tested in tests/train/test_loop.py and
tests/launch, that on several processes in test_distributed.py.
"""

import subprocess
import sys

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
