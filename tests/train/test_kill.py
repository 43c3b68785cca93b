"""Training that is killed in a step, inside a save and while an old checkpoint is deleted ends with
the same bits as one that was not. tests/slow/test_kill.py kills whole commands at every moment.
"""

import signal
import subprocess

import jax
import numpy as np

from helpers import ROOT
from helpers.killing import SAVING, struck
from helpers.toy_training import contents, environment, train

KILLS = [  # signal, file operation, number of the operation
    (signal.SIGTERM, "os.mkdir .*/tensorboard", 1),
    (signal.SIGKILL, SAVING, 9),
    (signal.SIGKILL, r"checkpoints/[0-9]+\.deleted", 1),
]


def start(folder, kill=None):
    """`train` in a process of its own, killed at a file operation."""
    action, pattern, number = kill or ("said", "no such operation", 1)
    line = struck(action, pattern, number, ["helpers.toy_training", str(folder)])
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert ("struck at: " in done.stderr) == (kill is not None), done.stderr
    return done


def test_killed_three_times(tmp_path):
    train(tmp_path / "reference")
    for kill in KILLS:
        status = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}[kill[0]]
        assert start(tmp_path / "killed", kill).returncode == status
        if kill[0] == signal.SIGTERM:  # saved a step that no interval saves
            assert contents(tmp_path / "killed")[0] % 20
    assert start(tmp_path / "killed").returncode == 0
    (step, state, *others), (step_, state_, *others_) = (
        contents(tmp_path / name) for name in ("reference", "killed")
    )
    assert (step, others) == (step_, others_) and step == 60
    jax.tree.map(np.testing.assert_array_equal, state, state_)
