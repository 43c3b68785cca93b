"""Training that is killed again and again, at every moment at which it writes, ends with the same
bits as one that was not.
"""

import re
import signal

from helpers.killing import (
    CLOCK,
    MOMENTS,
    SAVE,
    STAGES,
    STEPS,
    differences,
    schedule,
    start,
    unfinished,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLS = 20
GRACE = 30  # seconds


def saved(workdir, stage):
    """The newest step that has its sums."""
    folder = workdir / stage / "checkpoints"
    steps = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return max(
        (int(name) for name in steps - set(unfinished(folder)) if name.isdecimal()), default=0
    )


def test_killed_twenty_times(tmp_path):
    reference, workdir, programs = (
        tmp_path / "reference",
        tmp_path / "killed",
        tmp_path / "programs",
    )
    assert start(reference, None, programs).status == 0
    kills, between = schedule(KILLS, 0, SIGNALS), []
    for kill in [*kills, None]:
        before = {stage: saved(workdir, stage) for stage in STAGES}
        done = start(workdir, kill, programs)
        assert "Traceback" not in done.output, done.output
        for stage, step in re.findall(r"^(\w+): (\d+) of \d+ steps", done.output, re.M):
            assert int(step) == before[stage]  # it goes on from the newest
        if kill is None:
            assert done.status == 0, done.output
            continue
        assert done.reached, (kill, done.output)
        if kill.signal == signal.SIGKILL:
            assert done.status == -signal.SIGKILL
            continue
        assert done.status == 128 + signal.SIGTERM and done.grace < GRACE, done.output
        if "saving after this step" in done.output:
            between += [
                saved(workdir, stage)
                for stage in STAGES
                if 0 < saved(workdir, stage) < STEPS and saved(workdir, stage) % SAVE
            ]
    assert between  # SIGTERM saved steps that would not have been saved
    assert [kill.name for kill in kills if kill.name != CLOCK] == list(MOMENTS) and {
        kill.signal for kill in kills
    } == {*SIGNALS}
    assert differences(reference, workdir) == []
