"""Every script of benchmarks/ starts: its imports are there, and --help says what it does."""

import subprocess
import sys

import pytest

from helpers import ROOT
from helpers.toy_training import environment

SCRIPTS = [p for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script, tmp_path):
    command = [sys.executable, script, "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    # absl's own help, of one script, ends with 1
    assert done.returncode == ("absl" in script.read_text() and "usage" not in done.stdout), (
        done.stderr
    )
    assert "--" in done.stdout and not [*tmp_path.iterdir()]
