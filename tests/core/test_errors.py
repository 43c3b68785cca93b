"""Names from outside in messages: none breaks a line, hides another or ends the command."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from helpers import ROOT
from vqd_jax.core.errors import LONGEST_NAME, one_line, printable

NAMES = {
    "a\nerror: forged": "a\\nerror: forged",
    "a\r\x1b[2Kb": "a\\r\\x1b[2Kb",
    "gnp.\u202egpj": "gnp.\\u202egpj",
    "two\u2028lines\u0085": "two\\u2028lines\\x85",
    b"\xff.png".decode(errors="surrogateescape"): "\\udcff.png",
    "ünï 图 قط 👩\u200d🚀.png": "ünï 图 قط 👩\u200d🚀.png",  # as it is
}


@pytest.mark.parametrize("name", NAMES)
def test_only_what_could_forge_a_line_is_escaped(name):
    assert one_line(name) == printable(name) == NAMES[name]
    assert len(printable(name * 1000)) == LONGEST_NAME + 1
    one_line(name).encode()


def test_a_command_prints_hostile_names_on_their_own_line(tmp_path):
    """In a locale without UTF-8."""
    names = [os.fsencode(name) + b".png" for name in NAMES]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    (tmp_path / "whole.txt").write_text("a square")
    vqd = lambda *arguments: subprocess.run(
        [sys.executable, "-m", "vqd_jax", *arguments],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        timeout=300,
    )
    flags = "--config=configs/folder.py", f"--config.folder.path={tmp_path}"
    done = vqd("prepare", *flags, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.splitlines()
    assert b"left out: 6" in lines and b"  a\\nerror: forged.png: it has no caption" in lines
    assert b"\x1b" not in done.stdout and b"\r" not in done.stdout
    done = vqd("report", f"--workdir={tmp_path / list(NAMES)[0]}")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr.decode()
