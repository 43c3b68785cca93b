"""Training that is killed again and again, at every moment at which it writes, ends with the same
bits as one that was not. tests/train/test_kill.py has three of the kills.
"""

import signal

import pytest

from helpers.killing import CLOCK, MOMENTS, differences, schedule, start, train_killed

pytestmark = pytest.mark.slow  # 22 starts of a training
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLS = 20


def test_killed_twenty_times(tmp_path):
    reference, workdir, programs = (tmp_path / name for name in ("reference", "killed", "programs"))
    assert start(reference, None, programs).status == 0
    kills = schedule(KILLS, 0, SIGNALS)
    assert [kill.name for kill in kills if kill.name != CLOCK] == list(MOMENTS)
    assert {kill.signal for kill in kills} == {*SIGNALS}
    assert train_killed(workdir, kills, programs)  # SIGTERM saved steps that no interval saves
    assert differences(reference, workdir) == []
