"""A stand-in for gcloud that records every call, fails on request, and has a TPU VM as folders.

In $CLOUD: `calls`, a JSON line for each call, with its arguments and its stdin; `state`, the node's
state and type, absent without a node; `worker0`, `worker1`, … the home folders of the workers, in
which remote commands run. `failures` is a JSON list of [regular
expression over the call, times, output of gcloud, and optionally the node's next state]: the first
one that matches and has times left makes the call fail.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

cloud, words = Path(os.environ["CLOUD"]), sys.argv[1:]
line, state = " ".join(words), cloud / "state"


def end(sentence):
    sys.exit(f"ERROR: (gcloud) {sentence}")


def flag(name, default=None):
    return next((w.split("=", 1)[1] for w in words if w.startswith(f"--{name}=")), default)


def fail_on_request():
    file = cloud / "failures"
    failures = json.loads(file.read_text()) if file.exists() else []
    for failure in failures:
        if failure[1] and re.search(failure[0], line):
            failure[1] -= 1
            file.write_text(json.dumps(failures))
            if len(failure) > 3:
                state.write_text(failure[3]) if failure[3] else state.unlink()
            end(failure[2])


def node(verb):
    if verb == "describe":
        if not state.exists():
            end("NOT_FOUND: Resource 'projects/p/locations/z/nodes/n' was not found")
        print("WARNING: something", file=sys.stderr)
        print(state.read_text())
    elif verb == "create":
        if state.exists():
            end("ALREADY_EXISTS: Resource 'projects/p/locations/z/nodes/n' already exists")
        state.write_text(f"READY\t{flag('accelerator-type')}")
    elif verb == "delete":
        if not state.exists():
            end("NOT_FOUND: Resource 'projects/p/locations/z/nodes/n' was not found")
        state.unlink()
        for home in cloud.glob("worker*"):  # with its processes and its disk
            subprocess.run(["tmux", "kill-server"], env=as_worker(home), stderr=subprocess.DEVNULL)
            shutil.rmtree(home)
            home.mkdir()
    elif state.exists() and not state.read_text().startswith("READY"):
        end("the node does not answer")
    elif verb == "ssh":
        codes = []
        for home in workers():
            done = subprocess.run(
                ["bash", "-c", flag("command")],
                cwd=home,
                env=as_worker(home),
                stdin=subprocess.DEVNULL,
            )
            codes.append(done.returncode)
        sys.exit(max(codes, default=0))
    elif verb == "scp":
        source, target = words[4:6]
        for home in workers():
            on_disk = lambda path: home / path.split(":", 1)[1] if ":" in path else path
            shutil.copy(on_disk(source), on_disk(target))


def as_worker(home):
    """The environment on a worker, with a tmux of its own."""
    number = home.name.removeprefix("worker")
    sockets = Path(os.environ["SOCKETS"]) / number  # their path must be short
    sockets.mkdir(exist_ok=True)
    return os.environ | {
        "HOME": str(home),
        "TMUX_TMPDIR": str(sockets),
        "WORKER": number,
        "ENDPOINTS": ",".join(h.name for h in sorted(cloud.glob("worker*"))),
    }


def workers():
    wanted = flag("worker", "0")
    return [
        home
        for home in sorted(cloud.glob("worker*"))
        if wanted in ("all", home.name.removeprefix("worker"))
    ]


if __name__ == "__main__":
    asked = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    with (cloud / "calls").open("a") as calls:
        calls.write(json.dumps({"words": words, "stdin": asked}) + "\n")
    fail_on_request()
    if words[:3] == ["compute", "tpus", "tpu-vm"]:
        node(words[3])
    else:
        end(f"unknown command {line}")
