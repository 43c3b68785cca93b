"""launch/tpu_vm.sh with a stand-in for gcloud that also is the TPU VM: its workers are folders with
the real tmux.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading

import pytest

from helpers.launching import AWKWARD, GATE, LAUNCH, clouded, executable, sentence, wait_for

TRAIN = ["--", "--config=configs/emoji.py:gpu"]
BUCKET = [*TRAIN, "--workdir=gs://my-bucket/emoji"]
CAPACITY = (
    'There is no more capacity in the zone "us-central1-a"; you can try in another zone '
    "[EID: 0xba39]"
)
WORKER = "bash vqd_jax/launch/tpu_worker.sh"
IDLE = "! tmux has-session -t =vqd_jax 2>/dev/null"


@pytest.fixture
def workers():
    return 1


@pytest.fixture
def cloud(tmp_path, workers):
    with clouded(tmp_path, workers) as made:
        yield made


two = pytest.mark.parametrize("workers", [2])


# --- the VM


@pytest.mark.parametrize(
    "action", ["create", "push", "start", "logs", "run", "status", "fetch", "stop", "delete"]
)
def test_dry_run_prints_the_calls_that_are_made(cloud, action):
    options = ["--type=v4-8", "--spot", *(["--", *AWKWARD] if action in ("start", "run") else [])]
    printed = cloud.tpu(
        action, "--dry-run", *options, ok=True, PATH=os.environ["PATH"]
    ).stdout.splitlines()
    assert not cloud.calls() and printed
    if action not in ("create", "run"):
        cloud.pushed()
        (cloud.homes[0] / "vqd_jax.exit").write_text("0 1\n")
        (cloud.homes[0] / "vqd_jax.log").write_text("")
        (cloud.homes[0] / "vqd_jax/runs").mkdir()
    done = cloud.tpu(action, *options, ok=True)
    made = {
        shlex.join(["gcloud", "compute", "tpus", "tpu-vm", *call, "--zone=us-central1-a"])
        for call in cloud.calls()
    }
    assert {shlex.join(shlex.split(line)) for line in printed if line.startswith("gcloud")} == made
    assert [
        line
        for line in dict.fromkeys(done.stderr.splitlines())
        if line.startswith(("gcloud ", "tar "))
    ] == list(dict.fromkeys(printed))


def test_create_asks_for_the_image_of_the_type(cloud):
    for kind, image in {
        "v2-8": "tpu-ubuntu2204-base",
        "v5litepod-16": "v2-alpha-tpuv5-lite",
        "v6e-8": "v2-alpha-tpuv6e",
    }.items():
        cloud.tpu("create", f"--type={kind}", ok=True)
        assert cloud.calls() == [
            ["describe", "vqd-jax", "--format=value(state,acceleratorType)"],
            ["create", "vqd-jax", f"--accelerator-type={kind}", f"--version={image}"],
        ]
        (cloud.cloud / "state").unlink()
    cloud.tpu("create", "--version=other", "--preemptible", "--name=a-b", ok=True)
    assert cloud.calls()[1] == [
        "create",
        "a-b",
        "--accelerator-type=v5litepod-8",
        "--version=other",
        "--preemptible",
    ]


@pytest.mark.parametrize(
    "state,kind,verbs,said",
    [
        ("READY", "v5litepod-8", ["describe"], None),
        ("READY", "v4-8", ["describe"], "is a v4-8, not a v5litepod-8"),
        ("PREEMPTED", "v5litepod-8", ["describe", "delete", "describe", "create"], None),
        ("TERMINATED", "v5litepod-8", ["describe", "delete", "describe", "create"], None),
        ("CREATING", "v5litepod-8", ["describe"], "is in the state CREATING"),
    ],
)
def test_create_reuses_and_replaces(cloud, state, kind, verbs, said):
    cloud.exists(state, kind)
    done = cloud.tpu("create", ok=said is None)
    if state != "READY" and not said:
        verbs = verbs[:2] + verbs[3:]
    assert cloud.verbs() == verbs
    if said:
        sentence(done, 1, said)


@pytest.mark.slow  # 2 s
def test_a_zone_without_capacity_is_asked_again_with_growing_pauses(cloud):
    cloud.failing(["tpu-vm create", 2, CAPACITY])
    cloud.tpu("create", ok=True)
    assert (
        cloud.verbs() == ["describe", "create"] * 3
        and (cloud.cloud / "slept").read_text() == "30\n60\n"
    )
    (cloud.cloud / "state").unlink()
    cloud.failing(["tpu-vm create", 99, CAPACITY])
    sentence(
        cloud.tpu("create", "--tries=3"),
        1,
        "could not be created in 3 tries, us-central1-a has no capacity for a v5litepod-8",
    )
    assert cloud.verbs() == ["describe", "create"] * 3


@pytest.mark.parametrize(
    "told",
    [
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0 in zone "
        "us-central1-a.",
        "Quota 'TPUV5sPreemptible' exhausted.\n      Limit 10000 in region us-west4",
    ],
)
def test_a_quota_is_named_and_not_asked_for_again(cloud, told):
    cloud.failing(["tpu-vm create", 99, told])
    done = cloud.tpu("run", *TRAIN)
    sentence(done, 1, "the quota TPUV5sPreemptible of your project is used up or zero")
    assert (
        cloud.verbs() == ["describe", "create"]
        and told in done.stderr
        and "costs money" not in done.stderr
    )


def test_a_vm_that_someone_else_made_meanwhile_is_used(cloud):
    cloud.failing(
        ["tpu-vm create", 1, "ALREADY_EXISTS: Resource 'n' already exists", "READY\tv5litepod-8"]
    )
    assert "using it" in cloud.tpu("create", ok=True).stderr
    assert cloud.verbs() == ["describe", "create", "describe"]


def test_what_is_not_there_needs_no_deletion(cloud):
    assert "nothing to delete" in cloud.tpu("delete", ok=True).stderr
    assert cloud.calls() == [["delete", "vqd-jax", "--quiet"]]
    cloud.exists()
    cloud.failing(["delete", 1, "PERMISSION_DENIED: you may not"])
    sentence(
        cloud.tpu("delete"),
        1,
        "could not be deleted, and costs money: ERROR: (gcloud) PERMISSION_DENIED",
    )


def test_ssh_that_is_refused_at_first_is_tried_again(cloud):
    cloud.failing(["command=true", 3, "Connection refused"])
    done = cloud.tpu("run", *TRAIN, ok=True)
    assert [call[3] for call in cloud.calls() if call[0] == "ssh"][:5] == ["--command=true"] * 4 + [
        f"--command={IDLE.removeprefix('! ')}"
    ]
    assert (
        "try 3" in done.stderr
        and "costs money until launch/tpu_vm.sh delete --name=vqd-jax --zone=us-central1-a"
        in done.stderr
    )


STEPS = [
    ("describe", "could not tell whether vqd-jax exists: ERROR: (gcloud) injected", ["describe"]),
    ("tpu-vm create", "could not be created: ERROR: (gcloud) injected", ["describe", "create"]),
    ("command=true", "does not answer to ssh", ["describe", "create"] + ["ssh"] * 5 + ["describe"]),
    ("scp", "could not be copied", ["describe", "create"] + ["ssh"] * 3 + ["scp", "describe"]),
    (
        "tar -xzf",
        "could not be unpacked",
        ["describe", "create"] + ["ssh"] * 3 + ["scp", "ssh", "describe"],
    ),
    (
        "pip install",
        "the installation on vqd-jax failed",
        ["describe", "create"] + ["ssh"] * 3 + ["scp", "ssh", "ssh", "describe"],
    ),
    (
        "import jax",
        "jax does not find the TPU",
        ["describe", "create"] + ["ssh"] * 3 + ["scp"] + ["ssh"] * 3 + ["describe"],
    ),
    (
        "tpu_worker.sh start",
        "could not be started",
        ["describe", "create"] + ["ssh"] * 3 + ["scp"] + ["ssh"] * 5 + ["describe"],
    ),
]


@pytest.mark.parametrize("step,said,verbs", STEPS, ids=[step for step, *_ in STEPS])
def test_run_stops_at_a_failure_with_one_sentence(cloud, step, said, verbs):
    cloud.failing([step, 99, "injected"])
    done = cloud.tpu("run", *TRAIN)
    sentence(done, 1, said)
    assert cloud.verbs() == verbs
    assert ("it costs" in done.stderr or "costs money until" in done.stderr) == ("ssh" in verbs)


@pytest.mark.parametrize("step", ["scp", "pip install"])
def test_run_with_delete_leaves_nothing_behind_when_it_fails(cloud, step):
    cloud.failing([step, 99, "injected"])
    sentence(cloud.tpu("run", "--delete", *BUCKET), 1, "vqd-jax")
    assert cloud.verbs()[-1] == "delete" and not (cloud.cloud / "state").exists()


@pytest.mark.parametrize(
    "action,step",
    [
        ("stop", "tpu_worker.sh stop"),
        ("status", "describe"),
        ("status", "ssh"),
        ("fetch", "ssh"),
        ("fetch", "scp"),
        ("start", "has-session"),
        ("push", "has-session"),
    ],
)
def test_failures_of_single_commands(cloud, action, step):
    cloud.pushed()
    (cloud.homes[0] / "vqd_jax/runs").mkdir()
    cloud.failing([step, 99, "injected"])
    sentence(cloud.tpu(action, *(TRAIN if action == "start" else [])), 1, "vqd-jax")


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["create", "--type=large"], "--type=large: a type is a generation and a size"),
        (["create", "--tries=0"], "--tries must be a positive number, got 0"),
        (["run"], "the arguments of training are missing"),
        (["run", "--", "--workdir=gs://bucket"], "--workdir=gs://bucket: write gs://BUCKET/FOLDER"),
        (["push", *TRAIN], "push takes no arguments"),
        (["push", "start", *TRAIN], "one command, not push and start"),
        (["push", "--config=x"], "unknown option --config=x"),
        (["push", "--name=My_VM"], "--name=My_VM"),
        (["--spot"], "a command is missing"),
    ],
)
def test_bad_input_gets_one_sentence_and_calls_nothing(cloud, arguments, said):
    sentence(cloud.tpu(*arguments), 1, said)
    assert not cloud.calls()


def test_it_needs_a_zone_and_gcloud(cloud):
    sentence(cloud.tpu("status", zone="--spot"), 1, "--zone is missing")
    assert (
        "--zone=elsewhere"
        in cloud.tpu("status", "--dry-run", zone="--spot", TPU_ZONE="elsewhere", ok=True).stdout
    )
    (cloud.bin / "gcloud").unlink()
    if shutil.which("gcloud") is None:
        sentence(cloud.tpu("status"), 1, "there is no gcloud here")


# --- what runs on it


@two
def test_push_copies_the_checkout_and_keeps_its_runs(cloud):
    cloud.exists()
    for home in cloud.homes:
        (home / "vqd_jax/runs").mkdir(parents=True)
        (home / "vqd_jax/runs/kept").write_text("")
        (home / "vqd_jax/old.py").write_text("")
    for path in ("configs/new.py", ".ci/run", "vqd_jax/build/x", "a name\nof two lines", "gone"):
        executable(cloud.checkout / path, path)
    cloud.git("add", "--force", ".")
    (cloud.checkout / "configs/new.py").write_text("changed")
    (cloud.checkout / "gone").unlink()
    secrets = (".env", "id_rsa", "keys/service account.json")
    for path in ("runs/mine", ".venv/x", "vqd_jax/__pycache__/x.pyc", *secrets):
        executable(cloud.checkout / path, path)
    (cloud.checkout / ".git/info/exclude").write_text("/runs/\n.venv\n__pycache__\n/build/\n")
    done = cloud.tpu("push", ok=True)
    assert (
        "not copied, as git does not track them (git add FILE changes that): .env id_rsa "
        "keys/service\\ account.json\n" in done.stderr
    )
    for home in cloud.homes:
        assert {
            str(f.relative_to(home / "vqd_jax"))
            for f in (home / "vqd_jax").rglob("*")
            if f.is_file()
        } == {
            "configs/new.py",
            ".ci/run",
            "a name\nof two lines",
            "runs/kept",
            "vqd_jax/build/x",
            *(f"launch/{f.name}" for f in LAUNCH.iterdir()),
        }
        assert os.access(home / "vqd_jax/.ci/run", os.X_OK)
        assert (home / "vqd_jax/configs/new.py").read_text() == "changed"
    assert not list((cloud.checkout / "build").iterdir())


def test_push_needs_a_git_checkout(cloud):
    cloud.exists()
    shutil.rmtree(cloud.checkout / ".git")
    sentence(cloud.tpu("push"), 1, "is no git checkout: clone the repository")
    assert not [call for call in cloud.verbs() if call == "scp"]


@two
def test_every_worker_trains_and_logs_follow_the_first_one_to_the_end(cloud):
    cloud.exists()
    sentence(cloud.tpu("start", *TRAIN), 1, "was it pushed?")
    cloud.pushed()
    cloud.env["BEHAVE"] = GATE + '; echo "trained on $WORKER"; exit $(cat $HOME/wanted)'
    for home in cloud.homes:
        (home / "wanted").write_text("0")
    cloud.tpu("start", "--", *AWKWARD, ok=True)
    (where, ask), (everywhere, begin) = cloud.commands()
    assert (where, ask, everywhere) == ("all", IDLE, "all") and shlex.split(begin) == [
        *WORKER.split(),
        "start",
        *AWKWARD,
    ]
    sentence(cloud.tpu("start", *TRAIN), 1, "already running")
    sentence(cloud.tpu("push"), 1, "training is running")
    assert (
        "vqd_jax worker 0 running\nvqd_jax worker 1 running\n"
        in cloud.tpu("status", ok=True).stdout
    )
    threading.Timer(1, lambda: [(home / "go").touch() for home in cloud.homes]).start()
    said = cloud.tpu("logs", ok=True).stdout
    assert "trained on 0" in said and "trained on 1" not in said
    for worker in range(2):
        assert cloud.arguments(worker) == ["-m", "vqd_jax.main", *AWKWARD, "--coordinator=auto"]
        assert (cloud.homes[worker] / "vqd_jax.log").read_text().endswith(f"trained on {worker}\n")
    status = cloud.tpu("status", ok=True).stdout
    assert (
        len(re.findall(r"vqd_jax worker \d ended 0 \d+", status)) == 2
        and status.splitlines()[-1] == "trained on 0"
    )


def test_a_single_worker_trains_alone(cloud):
    cloud.pushed()
    cloud.tpu("start", *TRAIN, ok=True)
    cloud.tpu("logs", ok=True)
    assert cloud.arguments() == ["-m", "vqd_jax.main", "--config=configs/emoji.py:gpu"]


@two
@pytest.mark.parametrize("remove", [False, True])
def test_one_worker_that_fails_is_named_and_the_others_are_stopped(cloud, remove):
    cloud.env["BEHAVE"] = (
        "trap 'echo interrupted; exit 130' INT; [[ $WORKER == 1 ]] && { sleep 1; echo the reason; "
        "exit 3; }; " + GATE
    )
    done = cloud.tpu("run", *(["--delete"] if remove else []), *BUCKET)
    sentence(
        done, 1, "training failed on worker 1 of vqd-jax, with status 3: its last lines are above"
    )
    assert "the reason" in done.stdout
    assert cloud.commands()[-4:-2] == [
        ("0", f"{WORKER} log 100"),
        ("all", f"{WORKER} state"),
    ] or cloud.commands()[-4:-2] == [("all", f"{WORKER} state"), ("0", f"{WORKER} log 100")]
    assert cloud.commands()[-2:] == [("all", f"{WORKER} stop"), ("1", f"{WORKER} log 40")]
    if remove:
        assert cloud.verbs()[-1] == "delete" and not (cloud.cloud / "state").exists()
    else:
        assert "costs money until launch/tpu_vm.sh delete" in done.stderr
        assert [(home / "vqd_jax.exit").read_text().split()[0] for home in cloud.homes] == [
            "130",
            "3",
        ]
        assert "interrupted" in (cloud.homes[0] / "vqd_jax.log").read_text()


@two
def test_a_worker_that_forgot_its_training_is_a_failure(cloud):
    cloud.pushed()
    cloud.env["BEHAVE"] = GATE
    cloud.tpu("start", *TRAIN, ok=True)
    assert all((home / "vqd_jax.log").exists() for home in cloud.homes)  # at once
    subprocess.run(
        ["tmux", "kill-server"],
        env=cloud.env | {"TMUX_TMPDIR": cloud.env["SOCKETS"] + "/1"},
        check=True,
    )
    sentence(
        cloud.tpu("logs"),
        1,
        "training is gone on worker 1 of vqd-jax, as after a restart of the machine",
    )


RESUMES = """
    here=$CLOUD/my-bucket/emoji/vqvae/checkpoints/3
    [[ -f $here/sha256.json && -f $here/weights ]] && { echo resumed; exit; }
    mkdir -p $here; echo weights >$here/weights; echo sums >$here/sha256.json
"""


def test_a_preempted_vm_is_made_again_and_training_resumes_from_the_bucket(cloud):
    cloud.env["BEHAVE"] = RESUMES + GATE

    def preempt():
        wait_for((cloud.cloud / "my-bucket/emoji/vqvae/checkpoints/3/sha256.json").exists)
        cloud.failing(
            ["tpu_worker.sh state", 1, "the connection was closed", "PREEMPTED\tv5litepod-8"]
        )

    thread = threading.Thread(target=preempt)
    thread.start()
    done = cloud.tpu("run", "--spot", "--delete", *BUCKET, ok=True)
    thread.join()
    assert (
        "vqd-jax was preempted: starting again" in done.stderr
        and "resumed" in done.stdout
        and "error: " not in done.stderr
    )
    rest = ["--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", "--spot"]
    describe, delete = (
        ["describe", "vqd-jax", "--format=value(state,acceleratorType)"],
        ["delete", "vqd-jax", "--quiet"],
    )
    assert [call for call in cloud.calls() if call[0] not in ("ssh", "scp")] == [
        describe,
        ["create", "vqd-jax", *rest],
        describe,
        describe,
        describe,
        delete,
        ["create", "vqd-jax", *rest],
        delete,
    ]
    starts = [call for call in cloud.calls() if "start" in call[-1].split()]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert (
        starts[0][-1]
        == f"--command={WORKER} start --config=configs/emoji.py:gpu --workdir=gs://my-bucket/emoji"
    )


@two
@pytest.mark.slow  # 4 s
def test_training_that_got_sigterm_is_started_again(cloud):
    """As when a machine shuts down: training saved and ended with status 143, which is not done."""
    cloud.env["BEHAVE"] = (
        "[[ -f $HOME/again ]] && { echo resumed; exit; }; touch $HOME/again; "
        f"[[ $WORKER == 1 ]] && kill -TERM $$; {GATE}"
    )
    done = cloud.tpu("run", "--delete", *BUCKET, ok=True)
    assert (
        "training on vqd-jax got SIGTERM: starting again" in done.stderr
        and {"saved", "resumed"} <= {*done.stdout.split()}
        and "error: " not in done.stderr
    )
    assert cloud.verbs().count("create") == cloud.verbs().count("delete") == 1


def test_a_follower_says_that_training_got_sigterm(cloud):
    cloud.pushed()
    cloud.env["BEHAVE"] = "kill -TERM $$"
    cloud.tpu("start", *TRAIN, ok=True)
    wait_for((cloud.homes[0] / "vqd_jax.exit").exists)
    sentence(cloud.tpu("logs"), 1, "training on worker 0 of vqd-jax got SIGTERM, as when")


@pytest.mark.slow  # 2 s
def test_a_preempted_vm_without_a_bucket_is_not_made_again(cloud):
    cloud.env["BEHAVE"] = GATE
    cloud.failing(["tpu_worker.sh state", 1, "the connection was closed", "PREEMPTED\tv5litepod-8"])
    sentence(cloud.tpu("run", "--spot", *TRAIN), 1, "was preempted, and its disk is lost")
    assert cloud.verbs().count("create") == 1


@pytest.mark.slow  # 5 s
def test_a_lost_connection_is_tried_again_and_is_not_the_end_of_training(cloud):
    cloud.env["BEHAVE"] = "sleep 1; echo trained"
    cloud.failing(["tpu_worker.sh state", 4, "the connection was closed"])
    assert "trained" in cloud.tpu("run", *TRAIN, ok=True).stdout
    cloud.failing(["tpu_worker.sh state", 99, "the connection was closed"])
    sentence(
        cloud.tpu("logs"),
        1,
        "no longer answers to ssh; it still costs money, and may be training",
    )


@pytest.mark.slow  # 7 s
def test_run_follows_what_trains_already_and_never_deletes_it_unasked(cloud):
    cloud.pushed()
    cloud.env["BEHAVE"] = GATE
    cloud.tpu("start", *TRAIN, ok=True)
    cloud.failing(["tpu_worker.sh state", 99, "the connection was closed"])
    sentence(cloud.tpu("run", "--delete", *BUCKET), 1, "may be training")
    assert set(cloud.verbs()) == {"describe", "ssh"} and (cloud.cloud / "state").exists()
    cloud.failing()
    threading.Timer(1, (cloud.homes[0] / "go").touch).start()
    assert "training already runs on vqd-jax" in cloud.tpu("run", *BUCKET, ok=True).stderr
    assert not [call for call in cloud.calls() if call[0] == "scp" or "start" in call[-1].split()]


@pytest.mark.parametrize("action", ["run", "logs"])
def test_ctrl_c_leaves_training_running_and_says_so(cloud, action):
    cloud.env["BEHAVE"] = GATE
    if action == "logs":
        cloud.pushed()
        cloud.tpu("start", *TRAIN, ok=True)
        (cloud.cloud / "calls").unlink()
    command = [
        "bash",
        cloud.checkout / "launch/tpu_vm.sh",
        action,
        "--zone=us-central1-a",
        *(TRAIN if action == "run" else []),
    ]
    terminal = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # the tests may run in the background, which ignores it
    process = subprocess.Popen(
        command,
        env=cloud.env,
        cwd=cloud.folder,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=terminal,
    )
    wait_for(
        lambda: (
            ("all", f"{WORKER} state") in cloud.commands()
            and ("0", f"{WORKER} log 100") in cloud.commands()
        )
    )
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=30)[1]
    assert (
        process.returncode == 130
        and "interrupted; if vqd-jax exists it costs money, and may be training" in said
    )
    assert "vqd_jax worker 0 running" in cloud.tpu("status", ok=True).stdout


def test_stop_interrupts_and_fetch_brings_the_runs(cloud):
    cloud.pushed()
    cloud.env["BEHAVE"] = f"trap 'echo interrupted; exit 130' INT; touch $HOME/ready; {GATE}"
    cloud.tpu("start", *TRAIN, ok=True)
    home = cloud.homes[0]
    wait_for((home / "ready").exists)
    cloud.tpu("stop", ok=True)
    assert "interrupted" in (home / "vqd_jax.log").read_text() and (
        home / "vqd_jax.exit"
    ).read_text().startswith("130 ")
    cloud.tpu("stop", ok=True)
    sentence(cloud.tpu("logs"), 1, "training on vqd-jax was stopped")

    sentence(cloud.tpu("fetch"), 1, "there are no workdirs")
    (home / "vqd_jax/runs/emoji").mkdir(parents=True)
    (home / "vqd_jax/runs/emoji/samples.png").write_bytes(b"picture")
    cloud.tpu("fetch", ok=True)
    assert (cloud.checkout / "runs/vqd-jax/emoji/samples.png").read_bytes() == b"picture"
