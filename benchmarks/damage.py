"""Damages the files of a trained workdir, one at a time, and runs the commands that read it.

  python benchmarks/damage.py --damages=150 --out=results/damage.json

A small run of both stages with a plan, an evaluation, pictures and a report is trained once. Each
damage hits a copy of it: a flipped bit, a cut end, a page of zeros, an empty or a missing file, or
text in its place, in a file of a kind that is drawn first (checkpoints, tokens, data set, logs,
notes, pictures …). Then `vqd report`, `vqd sample` and the training, for some more steps, run on
the copy. Each must end with status 0, or with one sentence and status 2; and if it tells no more
about damage than on the undamaged workdir, its results must be the same, bit for bit: the page, the
picture, or the state, weights and record of the last checkpoint. `--seed` draws the damages.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from kill import say  # noqa: E402
from peer import provenance  # noqa: E402

from helpers import killing  # noqa: E402

LONGER = 3  # steps that the training goes on for
KINDS = {  # of files, by their place in the workdir; the first that matches
    "checkpoints of the codec": r"vqvae/checkpoints/",
    "checkpoints of the denoiser": r"diffusion/checkpoints/",
    "tokens": r"cache/tokens",
    "data set": r"cache/",
    "TensorBoard": r"/tensorboard/",
    "metrics": r"metrics",
    "plan": r"plan\.npz",
    "pictures": r"\.png$",
    "codebook use": r"\.npy$",
    "report": r"report\.html",
    "notes": r"",
}
SAMPLE = ["--prompt=a twitter style emoji of a crab", "--num=2", "--seed=1"]
EXPECTED = {0, 2}
BAD = ("silent", "crash")
SAID = (
    "damaged|aside|has changed|missing|cannot|earlier version|left out|not readable|is no |is empty"
)


def flip(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.randrange(len(content))]


def zeros(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content)) // 4096 * 4096
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    return content


def empty(content: bytearray, rng: random.Random) -> bytearray:
    return bytearray()


def text(content: bytearray, rng: random.Random) -> bytearray:
    return bytearray(rng.choice([b"[]", b"{}", b"null", b"7", b"<!doctype html>", b'{"a": [1]}']))


DAMAGES = (flip, flip, flip, cut, zeros, empty, text, None)  # None: the file is gone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--damages", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/damage"))
    parser.add_argument("--out", type=Path, default=Path("results/damage.json"))
    args = parser.parse_args()
    if args.workdir.exists():
        parser.error(f"{args.workdir} exists already: choose another --workdir")
    work, began = args.workdir.resolve(), time.monotonic()
    os.environ |= killing.environment(work / "programs")
    for name in ("train", "sample", "report", "plan", "evaluate"):  # once for all the children
        __import__(f"vqd_jax.cli.{name}")
    import vqd_jax.inference.pipeline
    import vqd_jax.train.experiment
    import vqd_jax.web.report.page  # noqa: F401

    say(f"working in {work}, writing {args.out}")
    whole = work / "whole"
    make(whole / "run")
    reference = probe(whole, work / "reference", lambda folder: None)
    for name, (status, output, _) in reference.items():
        if status:
            sys.exit(f"{output}\n{name} failed without damage")
    rng, rows = random.Random(args.seed), []
    for number in range(args.damages):
        kind, file = draw(whole / "run", rng)
        damage = rng.choice(DAMAGES)
        seed = rng.random()

        def hit(folder: Path, file=file, damage=damage, seed=seed) -> None:
            strike(folder / file, damage, random.Random(seed))

        found = probe(whole, work / "copy", hit)
        other = damage in (None, text)
        verdicts = {
            name: verdict(found[name], reference[name], other and name == "report")
            for name in found
        }
        bad = {name: v for name, v in verdicts.items() if v.startswith(BAD)}
        row = {"kind": kind, "file": file, "damage": damage.__name__ if damage else "gone"}
        rows.append(row | {"verdicts": verdicts})
        say(f"{number + 1:4} {row['damage']:5} {file}: {'; '.join(verdicts.values())}")
        for name in bad:
            say(f"     {name}: {found[name][1][-1500:]}")
        shutil.rmtree(work / "copy")
        write(args, rows, time.monotonic() - began)
    say(args.out)
    shutil.rmtree(work)
    sys.exit(any(v.startswith(BAD) for row in rows for v in row["verdicts"].values()))


def write(args: argparse.Namespace, rows: list[dict], seconds: float) -> None:
    """The results so far: an interrupted run keeps them."""
    counts = collections.Counter(
        (row["kind"], v.partition(":")[0]) for row in rows for v in row["verdicts"].values()
    )
    table = collections.defaultdict(dict)
    for (kind, v), n in sorted(counts.items()):
        table[kind][v] = n
    about = {"seed": args.seed, "damages": len(rows), "minutes": seconds / 60, "verdicts": table}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(provenance() | about | {"rows": rows}, indent=1) + "\n")


def make(workdir: Path) -> None:
    """Trains the run and lets every command write what it writes."""
    commands = [
        ["train", *killing.training(workdir)[1:]],
        ["plan", f"--workdir={workdir}", "--images=8"],
        ["evaluate", f"--workdir={workdir}", f"--out={workdir}/evaluation.json"],
        ["report", f"--workdir={workdir}"],
    ]
    for name, *arguments in commands:
        status, output = child(lambda name=name, arguments=arguments: command(name, arguments))
        if status:
            sys.exit(f"{output}\n{name} failed")


def draw(workdir: Path, rng: random.Random) -> tuple[str, str]:
    """(kind, path in the workdir) of a file."""
    by_kind = collections.defaultdict(list)
    for path in sorted(workdir.rglob("*")):
        if path.is_file() and path.name != ".lock":
            name = path.relative_to(workdir).as_posix()
            by_kind[next(k for k, pattern in KINDS.items() if re.search(pattern, name))].append(
                name
            )
    kind = rng.choice(sorted(by_kind))
    return kind, rng.choice(by_kind[kind])


def strike(path: Path, damage: Callable | None, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage:
        path.write_bytes(damage(content, rng) if content else b"\0")


def probe(
    whole: Path, folder: Path, hit: Callable[[Path], None]
) -> dict[str, tuple[int, str, object]]:
    """Command -> (status, output, result) on a damaged copy of the workdir."""
    shutil.copytree(whole, folder)
    workdir = folder / "run"
    hit(workdir)
    page, picture = folder / "report.html", folder / "picture.png"
    # trains on in a second copy, as the others read what it writes
    longer = f"--config.diffusion_train.examples={(killing.STEPS + LONGER) * 8}"
    commands = {
        "report": (["report", f"--workdir={workdir}", f"--out={page}"], lambda: digest(page)),
        "sample": (
            ["sample", f"--workdir={workdir}", *SAMPLE, f"--out={picture}"],
            lambda: digest(picture),
        ),
        "train": (["train", *killing.training(workdir, longer)[1:]], lambda: trained(workdir)),
    }
    out = {}
    for name, ((command_name, *arguments), result) in commands.items():
        status, said = child(lambda n=command_name, a=arguments: command(n, a))
        found = child(lambda result=result: print(json.dumps(result())))[1] if not status else ""
        if name == "report" and not status:
            notes = re.findall(r'<p class="note">(.*?)</p>', page.read_text())
            said = "\n".join([said, *notes])
        out[name] = status, said.replace(str(folder), "FOLDER"), found
    return out


def command(name: str, arguments: list[str]) -> None:
    from vqd_jax.cli import runner

    sys.argv = [f"vqd {name}", *arguments]  # ml_collections reads it
    runner.start(name, arguments)


def child(work: Callable[[], None], limit: float = 300) -> tuple[int, str]:
    """(exit status, output) of a forked process that does the work."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.chdir(ROOT)
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.close(read)
            sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))
            work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained(workdir: Path) -> dict[str, str]:
    """Digests of what the last checkpoint of the denoiser holds."""
    import jax
    import numpy as np

    from vqd_jax.runtime.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "diffusion" / "checkpoints", read_only=True)
    step, out = checkpoints.steps()[-1], {}
    for item in ("state", "weights", "record"):
        leaves = jax.tree.leaves(checkpoints.restore(item, step=step))
        content = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
        out[item] = hashlib.sha256(content).hexdigest()
    return out | {"step": step}


def told(output: str) -> set[str]:
    """The lines of an output, or notes of a page, about damage."""
    lines = (line.strip() for line in re.split(r"[\r\n]+", output))
    return {line for line in lines if re.search(SAID, line)}


def verdict(found: tuple[int, str, object], reference: tuple[int, str, object], shown: bool) -> str:
    """How a command ended; `shown`: its result may lack what is in a file that is not ours any
    more, as it is gone or is another JSON value.
    """
    status, output, result = found
    if status not in EXPECTED or "Traceback" in output:
        return f"crash: status {status}"
    if status:
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        return f"refused: {lines[-1][7:]}" if len(lines) == 1 else f"crash: {len(lines)} sentences"
    if new := sorted(told(output) - told(reference[1])):
        return f"told: {new[0][:200]}"
    if result == reference[2]:
        return "no effect"
    return "shows what is left" if shown else "silent: the result differs"


if __name__ == "__main__":
    main()
