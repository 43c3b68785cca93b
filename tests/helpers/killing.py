"""Commands that are killed, or meet a full disk, at a chosen file operation; and comparisons of what
they leave.
"""

import ast
import contextlib
import dataclasses
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from helpers import ROOT
from helpers.emoji_set import emoji_cache
from vqd_jax.config.defaults import defaults
from vqd_jax.core.checksums import mismatch
from vqd_jax.data.emoji import BASIC, Emoji
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, read_metrics

STAGES = ("vqvae", "diffusion")
STEPS, SAVE = 18, 3
GRACE = 30  # seconds from SIGTERM to the end
SETTINGS = (
    """
    emoji.max_items=24 vqvae_loss.lpips=0.0 vqvae_optim.muon=0.0
    vqvae.channels=8 vqvae.latent_width=8 vqvae.multipliers=(1,) vqvae.residual_blocks=0 vqvae.patch_size=8
    codebook.codes=32 codebook.width=8 codebook.restart_every=2 denoiser.layers=1 denoiser.width=16 denoiser.heads=2
    learned_text.width=16 learned_text.heads=2 learned_text.layers=0 learned_text.vocabulary=280 process.T=10 sampling.calls=3
    held_out.examples=8 held_out.draws=1 held_out.lpips=False preview.pictures=2
    evaluation.images=8 evaluation.bound_images=8 evaluation.draws=1 evaluation.subsets=2
    """.split()
    + [
        f"{stage}_train.{key}={value * 8}"
        for stage in STAGES
        for key, value in (
            ("batch_size", 1),
            ("log_every", 1),
            ("evaluate_every", 2 * SAVE),
            ("save_every", SAVE),
            ("examples", STEPS),
        )
    ]
)

# Settings that add state, randomness or work to a step.
ODD = {
    "defaults": (),
    "averages and discriminator": (
        *("vqvae_train.ema=0.9", "vqvae_loss.adversarial=0.1", "vqvae_loss.adversarial_start=40"),
        *("discriminator.width=8", "discriminator.layers=1", "diffusion_train.ema=0.9"),
    ),
    "dropout and micro-batches": (
        *("denoiser.dropout=0.2", "data.drop_words=0.2", "vqvae_train.accumulate=2"),
        *("diffusion_train.accumulate=4", "process.schedule=hybrid"),
    ),
    "gradient codes and Muon": (
        *("codebook.updates=gradient", "vqvae_optim.muon=0.01", "diffusion_optim.muon=0.01"),
        *("diffusion_loss.importance=False", "diffusion_optim.decay=linear"),
    ),
    "groups and bfloat16": (
        *("codebook.groups=2", "vqvae.dtype=bfloat16", "denoiser.dtype=bfloat16"),
        *("denoiser.head=tied", "denoiser.scan=True", "denoiser.remat=full"),
    ),
}


def config(steps: int, **changed: Any) -> ConfigDict:
    """The config of `training` with so many steps of each stage, saved at the end, and other
    changes as section__key=value.
    """
    c = defaults()
    for setting in SETTINGS:
        key, _, value = setting.partition("=")
        section, name = key.split(".")
        c[section][name] = type(c[section][name])(ast.literal_eval(value))
    for stage in STAGES:
        train = c[f"{stage}_train"]
        train.examples = train.save_every = steps * train.batch_size
    for key, value in changed.items():
        section, name = key.split("__")
        c[section][name] = value
    return c


# Runs a module of vqd_jax in which the number-th file operation that matches a pattern sends a signal
# to the process, lets every later write fail as on a full disk ("full"), or only prints a line
# ("said"). An operation is "read PATH", "open PATH" (to write), "os.rename A B" and so on, before it
# is done.
STRUCK = """
import os, re, resource, runpy, signal, sys
module, action, pattern, number = sys.argv[1:5]
wanted, left, writing = re.compile(pattern), int(number), os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, arguments):
    global left
    if not event.startswith(("os.", "shutil.")) and event != "open":
        return
    if event == "open" and not arguments[2] & writing:
        event = "read"
    operation = " ".join([event, *(os.fspath(a) for a in arguments if isinstance(a, (str, os.PathLike)) and len(os.fspath(a)) > 3)])
    if left and wanted.search(operation):
        left -= 1
        if not left:
            os.write(2, f"struck at: {operation}\\n".encode())
            if action == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            elif action != "said":
                os.kill(os.getpid(), int(action))
sys.addaudithook(watch)
del sys.argv[1:5]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def environment(cache: Path | None = None) -> dict[str, str]:
    """Environment of a small command; `cache` is for compiled programs."""
    env = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    return env if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)} | env


def training(workdir: Path, *extra: str) -> list[str]:
    """Arguments of `vqd_jax.main` for a run of seconds."""
    return [
        "vqd_jax.main",
        "--config=configs/emoji.py",
        f"--workdir={workdir}",
        *(f"--config.{key}" for key in SETTINGS),
        *extra,
    ]


def struck(
    action: str | int, pattern: str, number: int, command: list[str], python: str = sys.executable
) -> list[str]:
    """A command line like `python -m COMMAND…` in which that file operation triggers `action`:
    "full", "said" or a signal.
    """
    return [
        python,
        "-c",
        STRUCK,
        command[0],
        action if isinstance(action, str) else str(int(action)),
        pattern,
        str(number),
        *command[1:],
    ]


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal `seconds` after the number-th file operation that matches `pattern`, or, without a
    pattern, after the command has printed its workdir.
    """

    name: str
    signal: signal.Signals
    pattern: str = ""
    number: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Start:
    """How one start of the training went.

    Attributes:
      reached: the kill was sent.
      landed: what training was doing then.
      grace: seconds from the kill to the end.
    """

    kill: Kill | None
    reached: bool
    status: int
    output: str
    landed: str
    seconds: float
    grace: float


SAVING = r"checkpoints/[0-9]+(\.orbax-checkpoint-tmp|/(.*/)?commit_success|/\.sha256\.json\..*part)"
CLOCK = "by the clock"
# In the order of a training: a pattern of file operations, of how many of the first ones to choose
# one, and up to how many seconds to wait then.
MOMENTS = {
    # its images are made between the fourth operation and the fifth, in eight seconds or more
    "while the data set is built": (f"cache/{BASIC}/partial", 4, 5.0),
    "at a file of the data set": (f"cache/{BASIC}/partial", 6, 0.0),
    "in a step of the codec": ("os.mkdir .*vqvae/tensorboard", 1, 0.0),
    "inside a save of the codec": (f"vqvae/{SAVING}", 40, 0.0),
    "taking back metrics of the codec": (r"(open|os\.rename) .*vqvae/\.metrics\.", 2, 0.0),
    "inside another save of the codec": (f"vqvae/{SAVING}", 40, 0.0),
    "while an old checkpoint goes": (r"vqvae/checkpoints/[0-9]+\.deleted", 3, 0.0),
    "writing a picture of the codec": (r"vqvae/\.recon", 2, 0.0),
    "between the stages": ("diffusion/checkpoints", 2, 0.0),
    "before tokens are computed": ("read .*tokens-", 1, 0.0),
    "while tokens are written": ("tokens-.*part", 2, 0.0),
    "in a step of the denoiser": ("os.mkdir .*diffusion/tensorboard", 1, 0.0),
    "inside a save of the denoiser": (f"diffusion/{SAVING}", 40, 0.0),
    "taking back metrics of the denoiser": (r"(open|os\.rename) .*diffusion/\.metrics\.", 2, 0.0),
    "inside another save of the denoiser": (f"diffusion/{SAVING}", 40, 0.0),
    "writing a picture of the denoiser": (r"diffusion/\.samples", 2, 0.0),
    "writing the last pictures": (r"/\.samples\.", 2, 0.0),
    "writing the report": (r"/\.report\.", 2, 0.0),
}
# Prefix of a moment's name: index of its signal; at other moments the signals alternate.
ALWAYS = {"in a step": -1, "inside another save": -1, "inside a save": 0}
# After these moments a kill by the clock could miss the next one.
UNDIVIDED = ("inside a save", "between", "before tokens")


def schedule(kills: int, seed: int, signals: tuple[signal.Signals, ...]) -> list[Kill]:
    """The kills of one training, in order: one at every moment in MOMENTS, and others by the clock
    between them.

    The first of `signals` must be SIGKILL: metrics are only rewound after a save was killed by it.
    """
    rng, names = random.Random(seed), list(MOMENTS)
    places = [
        i + 0.5 for i, name in enumerate(names[:-1]) if i > 1 and not name.startswith(UNDIVIDED)
    ]
    chosen = list(enumerate(names)) + [
        (rng.choice(places), CLOCK) for _ in range(kills - len(names))
    ]
    out = []
    for i, (_, name) in enumerate(sorted(chosen)):
        sent = signals[
            next(
                (which for begin, which in ALWAYS.items() if name.startswith(begin)),
                (i + seed) % len(signals),
            )
        ]
        if name == CLOCK:
            out.append(Kill(name, sent, seconds=rng.uniform(0, 4)))
        else:
            pattern, most, seconds = MOMENTS[name]
            out.append(Kill(name, sent, pattern, rng.randint(1, most), rng.uniform(0, seconds)))
    return out


def start(
    workdir: Path,
    kill: Kill | None,
    cache: Path,
    python: str = sys.executable,
    limit: float = 900,
    settings: Sequence[str] = (),
) -> Start:
    """Starts the training, sends the signal at its moment and waits for the end. `cache` is for
    compiled programs, `limit` in seconds, `settings` are SECTION.KEY=VALUE.
    """
    command = training(workdir, *(f"--config.{setting}" for setting in settings))
    line = [python, "-m", *command]
    if kill and kill.pattern:
        line = struck(
            "said" if kill.seconds else kill.signal,
            kill.pattern,
            kill.number,
            command,
            python,
        )
    moment = "struck at: " if kill and kill.pattern else "workdir "
    began, sent, said, lines = time.monotonic(), None, "", queue.SimpleQueue()
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reader = threading.Thread(
        target=lambda: [lines.put(text) for text in process.stdout], daemon=True
    )
    reader.start()
    try:
        while process.poll() is None and time.monotonic() < began + limit:
            with contextlib.suppress(queue.Empty):
                said += (text := lines.get(timeout=0.01))
                if kill and sent is None and text.startswith(moment):
                    if kill.seconds:
                        time.sleep(kill.seconds)
                        process.send_signal(kill.signal)
                    sent = time.monotonic()
    finally:
        ended = time.monotonic()
        process.kill()
        process.wait()
    reader.join()
    while not lines.empty():
        said += lines.get()
    reached = sent is not None or moment in said and kill is not None
    landed = (kill.name if kill.pattern else landing(workdir, said)) if reached else ""
    return Start(
        kill, reached, process.returncode, said, landed, ended - began, ended - (sent or ended)
    )


def landing(workdir: Path, said: str) -> str:
    """What a process that was killed by the clock was doing, by its files and its output."""
    called = {"vqvae": "the codec", "diffusion": "the denoiser"}
    if any(workdir.glob(f"cache/{BASIC}/partial")):
        return "while the data set is built"
    for stage in STAGES:
        if any(workdir.glob(f"{stage}/checkpoints/*.orbax-checkpoint-tmp")) or unfinished(
            workdir / stage / "checkpoints"
        ):
            return f"inside a save of {called[stage]}"
    done = [stage for stage in STAGES if f"{stage} done (" in said or f"{stage}: all" in said]
    if at := [called[stage] for stage in STAGES if f"{stage}: " in said and stage not in done]:
        return (
            f"in a step of {at[-1]}"
            if "saving after this step" in said
            else f"in the stage of {at[-1]}"
        )
    return (
        "after the last stage"
        if len(done) == 2
        else "between the stages"
        if done
        else "at the start"
    )


def link_emoji(workdir: Path) -> Path:
    """Gives a new workdir the built emoji set, whose building takes longer than the training."""
    cache = workdir / "cache"
    cache.mkdir(parents=True)
    (cache / BASIC).symlink_to(emoji_cache() / BASIC)
    return workdir


def train_killed(workdir: Path, kills: list[Kill], cache: Path) -> list[int]:
    """Trains in `workdir` with these kills and then to the end, and returns the steps that only a
    SIGTERM saved. Each start must go on from the newest checkpoint and end as its signal says.
    """
    extra = []
    for kill in [*kills, None]:
        before = {stage: saved(workdir, stage) for stage in STAGES}
        done = start(workdir, kill, cache)
        assert "Traceback" not in done.output, done.output
        for stage, step in re.findall(r"^(\w+): (\d+) of \d+ steps", done.output, re.M):
            assert int(step) == before[stage]
        if kill is None:
            assert done.status == 0, done.output
            break
        assert done.reached, (kill, done.output)
        if kill.signal == signal.SIGKILL:
            assert done.status == -signal.SIGKILL
            continue
        assert done.status == 128 + signal.SIGTERM and done.grace < GRACE, done.output
        if "saving after this step" in done.output:
            steps = [saved(workdir, stage) for stage in STAGES]
            extra += [step for step in steps if 0 < step < STEPS and step % SAVE]
    return extra


def saved(workdir: Path, stage: str) -> int:
    """The newest step that has its checksums."""
    folder = workdir / stage / "checkpoints"
    steps = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    finished = (int(name) for name in steps - {*unfinished(folder)} if name.isdecimal())
    return max(finished, default=0)


def unfinished(checkpoints: Path) -> list[str]:
    """Names of the steps without checksums."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return [
        folder.name
        for folder in folders
        if folder.name.isdecimal() and not (folder / "sha256.json").exists()
    ]


def differences(one: Path, two: Path) -> list[str]:
    """Lists what differs in bits, is left over or is damaged in two finished workdirs of
    `training`, except for times.
    """
    out = [f"files: {sorted(names(one) ^ names(two))}"] if names(one) != names(two) else []
    for folder in [*one.glob("*/checkpoints/*"), *two.glob("*/checkpoints/*")]:
        if (
            wrong := mismatch(folder, beside=["best.json"])
            if folder.name.isdecimal()
            else "left over"
        ):
            out.append(f"{folder}: {wrong}")
    if out:
        return out
    for stage in STAGES:
        both = [
            Checkpoints(workdir / stage / "checkpoints", read_only=True) for workdir in (one, two)
        ]
        steps = [checkpoints.steps() for checkpoints in both]  # a signal may have added one
        if [s[-1:] for s in steps] != [[STEPS]] * 2 or max(map(len, steps)) > 2:
            out.append(f"{stage}: steps {steps}")
        for step in {*steps[0]} & {*steps[1]}:
            for item in ("state", "weights", "record", "tokenizer", "config"):
                if both[0].has(item, step) and not same(
                    *(checkpoints.restore(item, step=step) for checkpoints in both)
                ):
                    out.append(f"{stage}: {item} of step {step}")
        rows = [
            [
                {key: value for key, value in row.items() if key not in TIMINGS}
                for row in read_metrics(w / stage)
            ]
            for w in (one, two)
        ]
        if rows[0] != rows[1]:
            out.append(f"{stage}: metrics.jsonl")
    for name in sorted(names(one) & names(two)):
        if (
            name.endswith((".png", ".npy"))
            and (one / name).read_bytes() != (two / name).read_bytes()
        ):
            out.append(name)
        if name.endswith(".json"):
            json.loads((two / name).read_text())
    sets = {(workdir / "cache" / BASIC).resolve() for workdir in (one, two)}
    if len(sets) > 1 and len({Emoji(cache=str(folder.parent)).fingerprint for folder in sets}) > 1:
        out.append("the data set")
    return out


def names(workdir: Path) -> set[str]:
    """All files and folders, without those in checkpoints and TensorBoard's, whose names are
    times.
    """
    found = (path.relative_to(workdir).as_posix() for path in workdir.rglob("*"))
    return {name for name in found if not re.search(r"/tensorboard/|/checkpoints/", name)}


def same(one: object, two: object) -> bool:
    """Whether trees of arrays and JSON values agree in structure, types and bits."""
    equal = lambda x, y: (
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    )
    return jax.tree.structure(one) == jax.tree.structure(two) and all(
        map(equal, jax.tree.leaves(one), jax.tree.leaves(two))
    )
