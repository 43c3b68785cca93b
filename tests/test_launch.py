"""The launch scripts against stand-ins for gcloud, scontrol and python that record what they are asked.

The stand-in gcloud can also be the TPU VM: it runs the remote shell lines in a folder of its own, with the real tmux.
"""
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AWKWARD = ["--config=configs/emoji.py:gpu", "--config.preview.prompts=('it''s a \"dog\"', '$HOME \\ `x`')", "--workdir=a b", ""]

PYTHON = """#!/bin/bash
# Stands in for python: writes its arguments and what it was given of the environment, then obeys BEHAVE.
printf '%s\\0' "$@" >"$RECORD"
echo "cache $JAX_COMPILATION_CACHE_DIR in $PWD"
eval "${BEHAVE:-true}"
"""
GCLOUD = """#!{python} -IS
import os, pathlib, re, subprocess, sys
record = pathlib.Path(os.environ["RECORD"])
line = " ".join(sys.argv[1:])
with record.open("a") as f:
    f.write("\\0".join(["gcloud", *sys.argv[1:]]) + "\\1")
if os.environ.get("FAIL") and re.search(os.environ["FAIL"], line):
    sys.exit("ERROR: (gcloud) injected failure")
verb = sys.argv[4]
if verb == "describe" and "health" not in line:
    if not os.environ.get("STATE"):
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found")
    print("WARNING: something", file=sys.stderr)
    print(os.environ["STATE"])
home = os.environ.get("VM")
if home and verb == "ssh":
    command = next(a for a in sys.argv if a.startswith("--command=")).removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", command], cwd=home, env=os.environ | dict(HOME=home)).returncode)
if home and verb == "scp":
    source, target = (a.replace("vqd-jax:", home + "/") for a in sys.argv[5:7])
    pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes())
"""


GATE = "until [[ -f $HOME/go ]]; do sleep 0.1; done"


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
    """Runs scripts with a private home and stand-ins first on PATH."""

    def __init__(self, folder):
        self.folder, self.bin, self.record = folder, folder / "bin", folder / "record"
        self.bin.mkdir()
        self.env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(folder), "RECORD": str(self.record)}

    def __call__(self, *command, ok=None, **env):
        done = subprocess.run([str(c) for c in command], env=self.env | env, cwd=self.folder, capture_output=True, text=True,
                              timeout=60)
        assert ok is None or (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def arguments(self):
        return self.record.read_text().split("\0")[:-1]

    def calls(self):
        text = self.record.read_text() if self.record.exists() else ""
        return [call.split("\0") for call in text.split("\1")[:-1]]


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    scripts = [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def sentence(done, status, said):
    """The run ended with the status and with one line that begins with "error:" and holds what was to be said."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:] and said in lines[-1], done.stderr


# --- launch/local.sh

@pytest.fixture
def local(shell):
    executable(shell.bin / "python", PYTHON)
    return lambda *arguments, **kw: shell("bash", ROOT / "launch" / "local.sh", *arguments, **kw)


def test_local_passes_arguments_and_status_through(shell, local):
    done = local(*AWKWARD, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]
    assert done.stdout.splitlines()[-1] == f"cache {shell.folder}/.cache/vqd_jax/xla in {ROOT}"
    assert local(BEHAVE="exit 7").returncode == 7
    assert "cache /elsewhere" in local(JAX_COMPILATION_CACHE_DIR="/elsewhere", ok=True).stdout


def test_local_dry_run_prints_what_it_would_run(shell, local):
    printed = local("--dry-run", *AWKWARD, ok=True).stdout
    assert not shell.record.exists()
    assert local(*AWKWARD, ok=True).stdout.startswith(printed)
    shell.record.unlink()
    shell("bash", "-c", printed, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]


def test_local_detaches_and_logs(shell, local):
    log = shell.folder / "new folder" / "train.log"
    done = local("--detach", f"--log={log}", "--config=x", ok=True, BEHAVE=f"{GATE}; echo trained >&2; exit 3")
    assert "trained" not in log.read_text() and f"tail -f '{log}'" in done.stdout
    assert local("--detach", f"--log={log}", "--config=x", "--dry-run", ok=True).stdout.splitlines() \
        == done.stdout.splitlines()[:-1]
    os.kill(int(re.search(r"kill (\d+)", done.stdout)[1]), 0)  # it is there
    (shell.folder / "go").touch()
    wait_for(lambda: log.read_text().endswith("trained\n"))
    assert shell.arguments() == ["-m", "vqd_jax.main", "--config=x"]


def test_local_says_what_is_wrong(shell, local):
    sentence(local("--log="), 2, "--log needs a file")
    sentence(local(PYTHON="/no/python"), 2, "there is no /no/python here")
    (shell.folder / "file").write_text("")
    sentence(local("--detach", f"--log={shell.folder}/file/log"), 2, "cannot be written")
    assert "--detach" in local("--help", ok=True).stdout


# --- launch/slurm.sbatch

@pytest.fixture
def slurm(shell):
    executable(shell.bin / "python", PYTHON)
    executable(shell.bin / "scontrol", '#!/bin/bash\necho "$@" >"$HOME/scontrol"\n')
    shell.env |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
    # Slurm runs a copy of the script.
    script = shutil.copy(ROOT / "launch" / "slurm.sbatch", shell.folder / "slurm_script")
    return lambda *arguments, **kw: shell("bash", script, *arguments, **kw)


def test_slurm_trains_and_gives_back_the_status(shell, slurm):
    slurm(*AWKWARD, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *AWKWARD]
    assert slurm("--config=x", BEHAVE="exit 2").returncode == 2
    sentence(slurm(SLURM_SUBMIT_DIR=str(shell.folder)), 2, "is not a checkout of vqd_jax")
    assert not (shell.folder / "scontrol").exists()
    assert "sbatch [--gpus-per-node=4" in slurm("--help", ok=True).stdout


@pytest.mark.parametrize("number,requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_goes_back_into_the_queue_when_time_is_up(shell, slurm, number, requeued):
    warn = f"kill -{int(number)} $PPID; exec sleep 20"  # the batch script is the parent of what it starts
    assert slurm("--config=x", BEHAVE=warn).returncode == 128 + signal.SIGTERM
    assert (shell.folder / "scontrol").exists() == requeued
    if requeued:
        assert (shell.folder / "scontrol").read_text() == "requeue 17\n"


def test_slurm_does_not_requeue_a_run_that_ended(shell, slurm):
    finishes = "trap 'exit 0' TERM; kill -USR1 $PPID; for i in {1..100}; do sleep 0.1; done"
    assert slurm("--config=x", BEHAVE=finishes).returncode == 0
    assert not (shell.folder / "scontrol").exists()


# --- launch/tpu_vm.sh

TRAIN = ["--", "--config=configs/emoji.py:gpu"]


@pytest.fixture
def tpu(shell):
    executable(shell.bin / "gcloud", GCLOUD.format(python=sys.executable))
    executable(shell.bin / "sleep", "#!/bin/bash\n")
    executable(shell.bin / "tar", "#!/bin/bash\n")  # packing is tried with the VM below
    shutil.copytree(ROOT / "launch", shell.folder / "checkout" / "launch")  # push and fetch write beside the script

    def call(action, *options, zone="--zone=us-central1-a", **kw):
        shell.record.unlink(missing_ok=True)
        return shell("bash", shell.folder / "checkout" / "launch" / "tpu_vm.sh", action, zone, *options, **kw)

    return call


@pytest.mark.parametrize("action", ["create", "push", "start", "logs", "run", "status", "fetch", "stop", "delete"])
def test_tpu_dry_run_prints_the_calls_that_are_made(shell, tpu, action):
    options = ["--name=mine", "--type=v4-8", "--spot", "--project=some-project"]
    options += ["--", *AWKWARD] if action in ("start", "run") else []
    printed = tpu(action, "--dry-run", *options, ok=True, PATH=os.environ["PATH"])
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert not shell.calls() and lines
    done = tpu(action, *options, ok=True)
    assert [line for line in lines if line[0] == "gcloud"] == shell.calls()
    assert [line for line in done.stderr.splitlines() if line.startswith(("gcloud ", "tar "))] == printed.stdout.splitlines()
    for call in shell.calls():
        assert call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] and "mine" in " ".join(call)
        assert call[-2:] == ["--zone=us-central1-a", "--project=some-project"]


def test_tpu_create_asks_for_the_image_of_the_type(shell, tpu):
    for kind, image in {"v2-8": "tpu-ubuntu2204-base", "v5litepod-8": "v2-alpha-tpuv5-lite", "v6e-8": "v2-alpha-tpuv6e"}.items():
        tpu("create", f"--type={kind}", ok=True)
        assert shell.calls()[1][4:] == ["create", "vqd-jax", f"--accelerator-type={kind}", f"--version={image}",
                                        "--zone=us-central1-a"]
    tpu("create", "--version=other", "--preemptible", ok=True)
    assert shell.calls()[1][7:9] == ["--version=other", "--preemptible"]


@pytest.mark.parametrize("state,verbs,said", [
    ("READY\tv5litepod-8", ["describe"], None),
    ("READY\tv4-8", ["describe"], "is a v4-8, not a v5litepod-8"),
    ("PREEMPTED\tv5litepod-8", ["describe", "delete", "create"], None),
    ("CREATING\tv5litepod-8", ["describe"], "is in the state CREATING"),
])
def test_tpu_create_reuses_and_replaces(shell, tpu, state, verbs, said):
    done = tpu("create", STATE=state, ok=said is None)
    assert [call[4] for call in shell.calls()] == verbs
    if said:
        sentence(done, 1, said)


STEPS = [
    ("describe", "could not tell whether vqd-jax exists: ERROR: (gcloud) injected failure", 1),
    (r"tpu-vm create", "could not be created", 2),
    (r"--command=true", "does not answer to ssh", 7),  # asked five times
    (r"scp", "could not be copied", 5),
    (r"unzip|tar -xzf", "could not be unpacked", 6),
    (r"pip install", "the installation on vqd-jax failed", 7),
    (r"import jax", "jax does not find the TPU", 8),
    (r"new-session", "could not be started", 10),
    (r"list-panes", "failed or was stopped", 11),
]


@pytest.mark.parametrize("step,said,calls", STEPS, ids=[step for step, *_ in STEPS])
def test_tpu_run_stops_at_a_failure_with_one_sentence(shell, tpu, step, said, calls):
    done = tpu("run", *TRAIN, FAIL=step)
    sentence(done, 1, said)
    assert len(shell.calls()) == calls


@pytest.mark.parametrize("action,step", [("delete", "delete"), ("stop", "send-keys"), ("status", "describe"), ("status", "ssh"),
                                         ("fetch", "ssh"), ("fetch", "scp"), ("start", "has-session"), ("push", "has-session")])
def test_tpu_failures_of_single_commands(shell, tpu, action, step):
    sentence(tpu(action, *(TRAIN if action == "start" else []), FAIL=step), 1, "vqd-jax")


@pytest.mark.parametrize("arguments,said", [
    (["create", "--type=v5litepod-16"], "--type=v5litepod-16 is not supported, only v2-8, v3-8, v4-8, v5litepod-8, v6e-8"),
    (["run", "--type=v4-32", *TRAIN], "jax.distributed.initialize"),
    (["run"], "what to train is missing"),
    (["push", *TRAIN], "push takes no arguments"),
    (["push", "start", *TRAIN], "one command, not push and start"),
    (["push", "--config=x"], "unknown option --config=x"),
    (["push", "--name=My_VM"], "--name=My_VM"),
    (["--spot"], "a command is missing"),
])
def test_tpu_bad_input_gets_one_sentence_and_calls_nothing(shell, tpu, arguments, said):
    sentence(tpu(*arguments), 1, said)
    assert not shell.calls()


def test_tpu_needs_a_zone_and_gcloud(shell, tpu):
    sentence(tpu("status", zone="--spot"), 1, "--zone is missing")
    assert "fetch    copy" in tpu("--help", ok=True).stdout
    assert "--zone=elsewhere" in tpu("status", "--dry-run", zone="--spot", TPU_ZONE="elsewhere", ok=True).stdout
    (shell.bin / "gcloud").unlink()
    if shutil.which("gcloud") is None:
        sentence(tpu("status"), 1, "there is no gcloud here")


@pytest.fixture
def vm(shell, tpu):
    """A VM: home folder, real tmux on a socket of its own, stand-ins for pip, uv and the TPU's python."""
    if not shutil.which("tmux"):
        pytest.skip("needs tmux")
    (shell.bin / "tar").unlink()
    (shell.bin / "sleep").unlink()
    executable(shell.bin / "sudo", "#!/bin/bash\nexit 1\n")
    python = executable(shell.folder / "vm python", '#!/bin/bash\n[[ $1 == -c ]] && exit\n' + PYTHON.split("\n", 1)[1])
    executable(shell.bin / "python3", f"""#!/bin/bash
        [[ $* == "-m pip install -q --user uv" ]] && exit
        [[ $* == "-m uv venv -q --seed --python 3.12 vqd_venv" ]] && mkdir -p vqd_venv/bin && cp '{python}' vqd_venv/bin/python
    """)
    home = shell.folder / "vm"
    home.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # a socket's path must be short
        shell.env |= {"VM": str(home), "TMUX_TMPDIR": sockets, "RECORD": str(shell.record), "SHELL": "/bin/bash"}
        yield home
        subprocess.run(["tmux", "kill-server"], env=shell.env, capture_output=True)


def pushed(home):
    """A checkout on the VM, as push leaves it, in which python writes elsewhere than gcloud does."""
    executable(home / "vqd_venv/bin/python", PYTHON.replace('"$RECORD"', str(home / "arguments")))
    shutil.copytree(ROOT / "launch", home / "vqd_jax" / "launch")


def test_tpu_push_copies_the_checkout_and_keeps_its_runs(shell, tpu, vm):
    (vm / "vqd_jax/runs").mkdir(parents=True)
    (vm / "vqd_jax/runs/kept").write_text("")
    (vm / "vqd_jax/old.py").write_text("")
    checkout = shell.folder / "checkout"
    for path in ("configs/new.py", ".ci/run", ".git/HEAD", "runs/mine", ".venv/x", "vqd_jax/__pycache__/x.pyc",
                 "vqd_jax/build/x"):
        executable(checkout / path, path)
    tpu("push", ok=True)
    assert {str(f.relative_to(vm / "vqd_jax")) for f in (vm / "vqd_jax").rglob("*") if f.is_file()} == {
        "configs/new.py", ".ci/run", "runs/kept", "vqd_jax/build/x", *(f"launch/{f.name}" for f in (ROOT / "launch").iterdir())}
    assert os.access(vm / "vqd_jax/.ci/run", os.X_OK) and not list((checkout / "build").iterdir())


def test_tpu_start_trains_in_tmux_and_logs_follow_to_the_end(shell, tpu, vm):
    sentence(tpu("start", *TRAIN), 1, "was it pushed?")
    pushed(vm)
    shell.env["BEHAVE"] = GATE + "; echo trained; exit $(cat $HOME/wanted)"
    (vm / "wanted").write_text("0")
    tpu("start", "--", *AWKWARD, ok=True)
    sentence(tpu("start", *TRAIN), 1, "already running")
    sentence(tpu("push"), 1, "training is running")
    assert "training is running" in tpu("status", ok=True).stdout
    threading.Timer(1, (vm / "go").touch).start()
    assert "trained" in tpu("logs", ok=True).stdout
    assert (vm / "arguments").read_text().split("\0")[:-1] == ["-m", "vqd_jax.main", *AWKWARD]
    status = tpu("status", ok=True).stdout
    assert "ended with status 0" in status and status.splitlines()[-1] == "trained"
    (vm / "wanted").write_text("3")
    tpu("start", *TRAIN, ok=True)
    sentence(tpu("logs"), 1, "training on vqd-jax failed")


def test_tpu_stop_interrupts_and_fetch_brings_the_runs(shell, tpu, vm):
    pushed(vm)
    shell.env["BEHAVE"] = f"trap 'echo interrupted; exit 130' INT; touch $HOME/ready; {GATE}"
    tpu("start", *TRAIN, ok=True)
    wait_for((vm / "ready").exists)
    tpu("stop", ok=True)
    assert "interrupted" in (vm / "vqd_jax.log").read_text() and (vm / "vqd_jax.exit").read_text() == "130\n"
    tpu("stop", ok=True)

    sentence(tpu("fetch", "--name=vqd-jax"), 1, "there are no workdirs")
    (vm / "vqd_jax/runs/emoji").mkdir(parents=True)
    (vm / "vqd_jax/runs/emoji/samples.png").write_bytes(b"picture")
    tpu("fetch", ok=True)
    assert (shell.folder / "checkout/runs/vqd-jax/emoji/samples.png").read_bytes() == b"picture"
