"""Training that is killed inside a save, between the stages and in a step ends with the same bits as
one that was not. tests/slow/test_kill.py has twenty kills.
"""

import os
import signal
from pathlib import Path

from helpers.killing import MOMENTS, Kill, differences, link_emoji, start, train_killed


def at(name, sent, number=1, seconds=0.0):
    return Kill(name, sent, MOMENTS[name][0], number, seconds)


def test_killed_three_times(tmp_path):
    reference, workdir = (link_emoji(tmp_path / name) for name in ("reference", "killed"))
    programs = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or tmp_path / "programs")
    assert start(reference, None, programs).status == 0
    kills = [
        at("inside a save of the codec", signal.SIGKILL, number=9),
        at("between the stages", signal.SIGKILL),
        at("in a step of the denoiser", signal.SIGTERM),
    ]
    assert train_killed(workdir, kills, programs)  # SIGTERM saved a step that no interval saves
    assert differences(reference, workdir) == []
