"""Helpers of the tests of launch/: a shell with its own home folder and stand-ins first on PATH, and
one with a TPU VM.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from helpers import ROOT

LAUNCH = ROOT / "launch"
AWKWARD = [
    "--config=configs/emoji.py:gpu",
    "--config.preview.prompts=('it''s a \"dog\"', '$HOME \\ `x`')",
    "--workdir=a b",
    "",
]

PYTHON = """#!/bin/bash
# Stands in for python: records its arguments and environment, then runs BEHAVE. On signals it ends as training does.
trap 'echo saved; exit 143' TERM
trap 'echo interrupted; exit 130' INT
printf '%s\\0' "$@" >"$RECORD"
echo "cache $JAX_COMPILATION_CACHE_DIR in $PWD"
eval "${BEHAVE:-true}"
"""
GATE = "until [[ -f $HOME/go ]]; do sleep 0.1; done"  # trains until the test creates the file


def wait_for(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Shell:
    """Runs scripts with their own home folder and stand-ins first on PATH."""

    def __init__(self, folder):
        self.folder, self.bin, self.record = folder, folder / "bin", folder / "record"
        self.bin.mkdir()
        self.env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RECORD": str(self.record),
        }

    def __call__(self, *command, ok=None, timeout=30, **env):
        done = subprocess.run(
            [str(c) for c in command],
            env=self.env | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert ok is None or (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def arguments(self):
        return self.record.read_text().split("\0")[:-1]


def sentence(done, status, said):
    """The run ended with the status, and its one line that begins with "error: " contains `said`."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:] and said in lines[
        -1
    ], done.stderr


class Cloud(Shell):
    """tpu_vm.sh in a small checkout, and the files of the stand-in for gcloud; see gcloud.py."""

    def __init__(self, folder, sockets, workers):
        super().__init__(folder)
        self.cloud, self.checkout = folder / "cloud", folder / "checkout"
        executable(
            self.bin / "gcloud",
            f"#!/bin/bash\nexec {sys.executable} -IS {Path(__file__).with_name('gcloud.py')} "
            '"$@"\n',
        )
        executable(
            self.bin / "sleep",
            '#!/bin/bash\necho "$1" >>"$CLOUD/slept"\nexec /usr/bin/env -i sleep 0.1\n',
        )
        executable(self.bin / "sudo", "#!/bin/bash\nexit 1\n")
        executable(
            self.bin / "curl",
            '#!/bin/bash\ncase $* in *agent-worker-number) printf "$WORKER" ;;'
            ' *worker-network-endpoints) printf "$ENDPOINTS" ;; *) exit 22 ;; esac\n',
        )
        python = executable(
            folder / "vm python",
            PYTHON.replace("printf", "[[ $1 == -c || $2 == pip ]] && exit\nprintf", 1).replace(
                '"$RECORD"', '"$HOME/arguments"'
            ),
        )
        executable(
            self.bin / "python3",
            f"""#!/bin/bash
            [[ $* == "-m pip install -q --user uv" ]] && exit
            [[ $* == "-m uv venv -q --seed --python 3.12 vqd_venv" ]] && mkdir -p vqd_venv/bin && cp '{python}' vqd_venv/bin/python
        """,
        )
        self.env |= {"CLOUD": str(self.cloud), "SOCKETS": sockets, "SHELL": "/bin/bash"}
        self.homes = [self.cloud / f"worker{i}" for i in range(workers)]
        for home in self.homes:
            home.mkdir(parents=True)
        shutil.copytree(LAUNCH, self.checkout / "launch")  # push and fetch write beside the script
        self.git("init", "-q")
        self.git("add", ".")

    def git(self, *words):
        self("git", "-C", self.checkout, *words, ok=True)

    def tpu(self, action, *options, zone="--zone=us-central1-a", **kw):
        (self.cloud / "calls").unlink(missing_ok=True)
        return self("bash", self.checkout / "launch" / "tpu_vm.sh", action, zone, *options, **kw)

    def calls(self):
        """The arguments of gcloud, without those that every call begins or ends with."""
        out = []
        for line in (
            (self.cloud / "calls").read_text().splitlines()
            if (self.cloud / "calls").exists()
            else ()
        ):
            call = json.loads(line)
            assert call["stdin"] == ""
            assert (
                call["words"][:3] == ["compute", "tpus", "tpu-vm"]
                and call["words"][-1] == "--zone=us-central1-a"
            )
            out.append(call["words"][3:-1])
        return out

    def verbs(self):
        return [call[0] for call in self.calls()]

    def commands(self):
        """(worker, command) of each ssh, without repetitions."""
        return list(
            dict.fromkeys(
                (call[2].removeprefix("--worker="), call[3].removeprefix("--command="))
                for call in self.calls()
                if call[0] == "ssh"
            )
        )

    def exists(self, state="READY", kind="v5litepod-8"):
        (self.cloud / "state").write_text(f"{state}\t{kind}")

    def failing(self, *failures):
        (self.cloud / "new").write_text(json.dumps(failures))
        (self.cloud / "new").replace(self.cloud / "failures")

    def pushed(self):
        """A checkout on each worker, as push leaves it."""
        self.exists()
        for home in self.homes:
            shutil.copytree(LAUNCH, home / "vqd_jax" / "launch")
            executable(home / "vqd_venv/bin/python", (self.folder / "vm python").read_text())

    def arguments(self, worker=0):
        return (self.homes[worker] / "arguments").read_text().split("\0")[:-1]


@contextlib.contextmanager
def clouded(folder, workers):
    """A Cloud with `workers`, whose processes end with it."""
    if not shutil.which("tmux"):
        pytest.skip("needs tmux")
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # a socket's path must be short
        cloud = Cloud(folder, sockets, workers)
        try:
            yield cloud
        finally:
            for each in Path(sockets).iterdir():
                subprocess.run(
                    ["tmux", "kill-server"],
                    env=cloud.env | {"TMUX_TMPDIR": str(each)},
                    capture_output=True,
                )
