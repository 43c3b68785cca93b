"""Atomic writes and locks between processes."""

import re
import subprocess
import sys
import threading

import pytest

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, lock, remove_leftovers

HOLDER = """
import sys, time
from pathlib import Path
from vqd_jax.core.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path/folder/lock`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "folder" / "lock"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_an_error_or_waited_for(holder, tmp_path):
    path = tmp_path / "folder" / "lock"
    with pytest.raises(UserError, match="^it is busy$"), lock(path, "it is busy"):
        pass
    order = []

    def wait():
        with lock(path):
            order.append("acquired")

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.3)
    order.append("killed")
    holder.kill()  # the system frees its lock
    waiting.join(60)
    assert order == ["killed", "acquired"]
    with lock(path, "it is busy"):
        pass


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "lock", "it is busy"):
        raise KeyError
    with lock(tmp_path / "lock", "it is busy"):
        pass


def test_a_write_replaces_the_file_at_its_end_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as part:
        part.write_text("old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    with pytest.raises(KeyError), atomic_write(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "new" and [*path.parent.iterdir()] == [path]


def test_a_folder_appears_at_once(tmp_path):
    with atomic_write(tmp_path / "folder") as part:
        part.mkdir()
        (part / "a").touch()
        assert not (tmp_path / "folder").exists()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["a"]


def test_a_write_that_the_system_refuses_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    sentence = f"cannot write the report {tmp_path / 'file' / 'x'}: File exists"
    with (
        pytest.raises(UserError, match=f"^{re.escape(sentence)}$"),
        atomic_write(tmp_path / "file" / "x", "the report"),
    ):
        pass


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".a.png.7.part").touch()
    (tmp_path / ".folder.8.part").mkdir()
    (tmp_path / "a.png").touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
