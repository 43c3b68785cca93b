"""A full disk and folders that may not be written to: every command ends with one sentence that
names the place, and damages nothing.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.killing import ROOT, STEPS, differences, environment, struck, training
from vqd_jax.data.emoji import BASIC, Emoji
from vqd_jax.runtime.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

# Runs a command to which, also if it is root's, the modes of files apply: without the rights to
# write and read all the same.
PLAIN = """
import ctypes, os, sys
for capability in (1, 2, 3) if os.geteuid() == 0 else ():
    assert ctypes.CDLL(None).prctl(24, capability) == 0  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def run(programs):
    def run(command, **options):
        return subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment(programs),
            text=True,
            timeout=600,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )

    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The emoji set; VQD_TEST_CACHE lets several test runs share one."""
    cache = Path(os.environ.get("VQD_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
    Emoji(cache=str(cache))
    return cache


def begin(workdir, built):
    """A workdir whose data set is there."""
    (workdir / "cache").mkdir(parents=True)
    (workdir / "cache" / BASIC).symlink_to(built / BASIC)
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory, built, run):
    """A training that nothing disturbed."""
    workdir = begin(tmp_path_factory.mktemp("finished") / "emoji", built)
    done = run([sys.executable, "-m", *training(workdir)])
    assert done.returncode == 0, done.stderr
    return workdir


def ends_with(done, *words):
    """One sentence, which has these words, and no traceback."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    for word in words:
        assert str(word) in lines[-1], done.stderr


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_differences_are_seen(finished, tmp_path):
    """The comparison of the other tests, here and in test_kill."""
    assert differences(finished, finished) == []

    def flip(file):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)

    state = lambda workdir: max(
        (workdir / f"vqvae/checkpoints/{STEPS}/state").rglob("*"),
        key=lambda path: path.stat().st_size,
    )
    for i, (damage, seen) in enumerate(
        [
            (lambda workdir: flip(workdir / "samples.png"), "samples.png"),
            (
                lambda workdir: (workdir / "diffusion/.left.part").touch(),
                "files: ['diffusion/.left.part']",
            ),
            (lambda workdir: flip(next((workdir / "cache").glob("tokens-*.npy"))), "cache/tokens-"),
            (
                lambda workdir: (workdir / "vqvae/metrics.jsonl").write_text(
                    '{"step": 1, "time": 0}\n'
                ),
                "vqvae: metrics.jsonl",
            ),
            (lambda workdir: flip(state(workdir)), f"vqvae/checkpoints/{STEPS}: state/"),
        ]
    ):
        shutil.copytree(finished, tmp_path / str(i), symlinks=True)
        damage(tmp_path / str(i))
        assert any(seen in difference for difference in differences(finished, tmp_path / str(i)))


@pytest.fixture
def disk(tmp_path):
    """A small disk, and how to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = lambda *options: (
        subprocess.run(
            ["mount", "-t", "tmpfs", "none", str(folder), *options], capture_output=True
        ).returncode
        == 0
    )
    if os.geteuid() or not mount("-o", "size=1200k"):
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder, lambda: mount("-o", "remount,size=1g")
    subprocess.run(["umount", str(folder)], check=True)


def test_training_on_a_disk_that_becomes_full_goes_on_when_there_is_space(
    disk, finished, built, run
):
    folder, enlarge = disk
    workdir = begin(folder / "emoji", built)
    command = [sys.executable, "-m", *training(workdir)]
    ends_with(run(command), workdir, "No space left on device")
    good = Checkpoints(workdir / "vqvae" / "checkpoints", read_only=True).latest_step()
    assert good
    ends_with(run(command), workdir, "No space left on device")
    assert enlarge()
    done = run(command)
    assert done.returncode == 0 and f"vqvae: {good} of {STEPS} steps" in done.stdout, done.stderr
    assert differences(finished, workdir) == []


FULL = [  # where training meets the full disk, and what it says
    (r"open .*vqvae/metrics", 1, "cannot write a log to {workdir}/vqvae: File too large", None),
    (
        r"vqvae/checkpoints/6\.orbax-checkpoint-tmp",
        5,
        "cannot write checkpoint step 6 to {workdir}/vqvae/checkpoints: File too large",
        3,
    ),
    (
        r"open .*vqvae/\.recon",
        1,
        "cannot write the picture {workdir}/vqvae/reconstructions-00000006.png: File too large",
        6,
    ),
    (r"open .*tokens-.*part", 1, "cannot write tokens to {workdir}/cache/tokens-", STEPS),
    (
        r"os\.mkdir .*diffusion/tensorboard",
        1,
        "cannot write a log to {workdir}/diffusion: File too large",
        None,
    ),
    (
        r"open .*diffusion/checkpoints/3/\.sha",
        1,
        "cannot write checksums to {workdir}/diffusion/checkpoints/3/sha256.json: File too large",
        None,
    ),
    (
        r"open .*/\.samples\.",
        1,
        "cannot write the picture {workdir}/samples.png: File too large",
        STEPS,
    ),
    (
        r"open .*/\.report\.",
        1,
        "cannot write the report {workdir}/report.html: File too large",
        STEPS,
    ),
]


def test_training_that_meets_a_full_disk_goes_on_bit_for_bit(finished, built, run, tmp_path):
    workdir = begin(tmp_path / "emoji", built)
    for pattern, number, sentence, good in FULL:
        done = run(struck("full", pattern, number, training(workdir)))
        ends_with(done, sentence.format(workdir=workdir))
        stage = "diffusion" if "diffusion" in pattern or "samples" in pattern else "vqvae"
        assert Checkpoints(workdir / stage / "checkpoints", read_only=True).latest_step() == good
    with open("/dev/full", "w") as full:
        ends_with(
            run([sys.executable, "-m", *training(workdir)], stdout=full),
            "standard output",
            "No space left on device",
        )
    assert run([sys.executable, "-m", *training(workdir)]).returncode == 0
    assert differences(finished, workdir) == []


def writers(finished, tmp_path):
    """name: (command, a pattern of the file that it writes, the place that is named), each to a
    folder of its own.
    """
    place = lambda name: tmp_path / "made" / name
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 32), (60 * i, 0, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"number {i}\n")
    shutil.copytree(finished, place("plan") / "run", symlinks=True)
    workdir, cache = f"--workdir={finished}", f"--cache={finished / 'cache'}"
    model = tmp_path / "model.safetensors"
    return model, {
        "sample": (
            ["sample", workdir, "--prompt=a dog", "--num=1", f"--out={place('sample')}/a.png"],
            r"open .*\.a\.png",
            "a.png",
        ),
        "like": (
            ["sample", workdir, f"--like={tmp_path / 'drawn.png'}", f"--out={place('like')}/b.png"],
            r"open .*\.b\.png",
            "b.png",
        ),
        "evaluate": (
            ["evaluate", workdir, cache, "--images=4", f"--out={place('evaluate')}/r.json"],
            r"open .*\.r\.json",
            "r.json",
        ),
        "curves": (
            ["curves", workdir, f"--out={place('curves')}/c.png"],
            r"open .*\.c\.png",
            "c.png",
        ),
        "export": (
            ["export", workdir, f"--out={place('export')}/m.safetensors"],
            r"os.mkdir|/\.m\.safetensors",
            "m.safetensors",
        ),
        "small": (
            ["export", workdir, "--format=workdir", f"--out={place('small')}/w"],
            "orbax-checkpoint-tmp",
            "w/vqvae/checkpoints",
        ),
        "convert": (
            ["convert", model, f"--workdir={place('convert')}/w"],
            "orbax-checkpoint-tmp",
            "w/vqvae/checkpoints",
        ),
        "plan": (
            [
                "plan",
                f"--workdir={place('plan')}/run",
                cache,
                "--calls=5",
                "--images=8",
                "--points=2",
            ],
            r"open .*\.plan\.npz",
            "plan.npz",
        ),
        "prepare": (
            [
                "prepare",
                "--config=configs/folder.py",
                f"--config.folder.path={pictures}",
                f"--workdir={place('prepare')}/w",
            ],
            "partial",
            "w/cache/folder-",
        ),
    }


def test_the_other_commands_on_a_full_disk_and_in_folders_that_may_not_be_written_to(
    finished, run, tmp_path
):
    model, commands = writers(finished, tmp_path)
    run(
        [sys.executable, "-m", "vqd_jax", "export", f"--workdir={finished}", f"--out={model}"],
        check=True,
    )
    run(
        [
            sys.executable,
            "-m",
            "vqd_jax",
            "sample",
            f"--workdir={finished}",
            "--prompt=a dog",
            "--num=1",
            f"--out={tmp_path / 'drawn.png'}",
        ],
        check=True,
    )
    for name in commands:
        (tmp_path / "made" / name).mkdir(exist_ok=True)
    before, kept = contents(finished), contents(tmp_path / "made")

    def full(name):
        (command, *arguments), pattern, place = commands[name]
        number = 3 if pattern in ("partial", "orbax-checkpoint-tmp") else 1
        ends_with(
            run(struck("full", pattern, number, ["vqd_jax", command, *map(str, arguments)])),
            tmp_path / "made" / name,
            place,
        )

    def locked(name):
        (command, *arguments), _, place = commands[name]
        folders = [
            path
            for path in (tmp_path / "made" / name, *(tmp_path / "made" / name).rglob("*"))
            if path.is_dir()
        ]
        for folder in folders:
            folder.chmod(0o555)
        try:
            ends_with(
                run([sys.executable, "-c", PLAIN, "-m", "vqd_jax", command, *arguments]),
                tmp_path / "made" / name,
            )
        finally:
            for folder in folders:
                folder.chmod(0o755)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for check in (full, locked):
            list(pool.map(check, commands))
            assert contents(finished) == before
            drawn = tmp_path / "made" / "evaluate" / "r"  # stays, to go on from there
            left = {
                path: content
                for path, content in contents(tmp_path / "made").items()
                if path.name != "lock" and drawn not in path.parents
            }
            assert left == kept


def test_training_in_a_folder_that_may_not_be_written_to(finished, run, tmp_path):
    locked = tmp_path / "locked"
    shutil.copytree(finished, locked / "run", symlinks=True)
    before = contents(locked)
    folders = [
        path for path in (locked, *locked.rglob("*")) if path.is_dir() and not path.is_symlink()
    ]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for workdir in (locked / "run", locked / "new"):
            ends_with(
                run([sys.executable, "-c", PLAIN, "-m", *training(workdir)]),
                workdir,
                "Permission denied",
            )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert contents(locked) == before
