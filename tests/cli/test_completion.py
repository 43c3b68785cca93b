"""`eval "$(vqd --completion)"` in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from vqd_jax.__main__ import COMMANDS

SCRIPT = """
vqd() { python -m vqd_jax "$@"; }
eval "$(vqd --completion)"
COMP_WORDS=(%s) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_vqd
printf '%%s\\n' "${COMPREPLY[@]}"
"""


def completions(words):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    done = subprocess.run(
        ["bash", "-c", SCRIPT % words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    "words,expected",
    [
        ("vqd ''", [*COMMANDS]),
        ("vqd ex", ["explain", "export"]),
        ("vqd sample --pro", ["--prompt=", "--prompts_file="]),
        ("vqd sample --ra", ["--ramp"]),
        ("vqd sample --nor", ["--noramp"]),
        ("vqd train --con", ["--config="]),
        ("vqd nothing --con", []),
    ],
)
def test_the_tab_key(words, expected):
    assert completions(words) == expected
