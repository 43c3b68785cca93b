"""The papers' claims, tested on emoji: every variant has the same tokens, captions, sizes and
training, and is run with several seeds.

  python benchmarks/claims.py --work=runs/claims
      trains and measures all that is missing, the important tables first
  python benchmarks/claims.py --speed
      measures images per second of the diffusion model and the autoregressive baseline, on an idle
      machine
  python benchmarks/claims.py --table=docs/results.md
      only fills in the tables of that page and draws the plot

A run is `vqd_jax.main` (`previous_state.py` for networks that predict z_{t-1}) in its own workdir,
with the tokens of `--codec`. Images are sampled when all runs are trained. If it is killed, it
resumes. The primary figure is held-out bits per token: the bound with the prior's term, or the
exact value of the baseline. The held-out emoji-style pairs are divided by their position: choices
are made on the first half (validation) and reported on the second (test).
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from claims_tables import SETTINGS, VARIANTS, fill, markdown, plot
from previous_state import diffusion_predicts_previous_state

from vqd_jax.core.files import atomic_write
from vqd_jax.data import batches
from vqd_jax.diffusion.elbo import prior_term
from vqd_jax.eval import evaluation, held_out, protocols
from vqd_jax.eval.evaluator import make_evaluator
from vqd_jax.eval.held_out import bits
from vqd_jax.eval.run import provenance
from vqd_jax.inference import pipeline
from vqd_jax.inference.prompts import escape_prompt

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {"test": 128, "train": 64}  # pictures per part
BOUND_IMAGES, DRAWS = 128, 20  # of the training pairs; times of each image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="where the runs are")
    parser.add_argument(
        "--codec",
        type=Path,
        default=ROOT / "pretrained/emoji",
        help="a workdir whose tokens are used",
    )
    parser.add_argument("--out", type=Path, default=Path("results/claims.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="runs at a time, which share the cores",
    )
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="of the config of every run, for a smaller trial",
    )
    parser.add_argument("--speed", action="store_true", help="time the samplers instead")
    parser.add_argument(
        "--table", type=Path, help="only fill in the tables of this page, and draw the plot"
    )
    args = parser.parse_args()
    settings = SETTINGS | dict(item.split("=", 1) for item in args.set)
    done = (
        json.loads(args.out.read_text())
        if args.out.exists()
        else {"settings": settings, "rows": []}
    )
    if done["settings"] != settings and not (args.speed or args.table):
        parser.error(f"{args.out} has rows of other settings: choose another --out and --work")
    if args.speed:
        done["speed"] = speed(args.work)
        save(done, args.out)
    elif not args.table:
        work_through(args, settings, done)
    print(markdown(done))
    if args.table:
        args.table.write_text(fill(args.table.read_text(), done))
        plot(done, args.out.with_suffix(".png"))


def work_through(args: argparse.Namespace, settings: dict[str, Any], done: dict[str, Any]) -> None:
    """Trains on all cores; the main thread measures the bits of each run as soon as it is there,
    and in the end draws pictures.
    """
    known = {(row["variant"], row["seed"]) for row in done["rows"]}
    groups = dict.fromkeys(VARIANTS[name].group for name in args.variants)
    todo = [
        (name, seed)
        for group in groups
        for seed in range(args.seeds)
        for name in args.variants
        if VARIANTS[name].group == group and (name, seed) not in known
    ]
    began, measure, failed = time.monotonic(), Measure(args.work / "cache"), []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        running = {
            pool.submit(train, args, settings, name, seed): (name, seed) for name, seed in todo
        }
        for i, future in enumerate(concurrent.futures.as_completed(running), 1):
            name, seed = running[future]
            try:
                row = (
                    {"variant": name, "seed": seed}
                    | future.result()
                    | measure.bits(name, folder_of(args.work, name, seed))
                )
            except subprocess.CalledProcessError:
                failed.append(f"{name} {seed}")
                print(
                    f"FAILED: {name}, seed {seed}; see {folder_of(args.work, name, seed)}.log",
                    flush=True,
                )
                continue
            done["provenance"] = provenance(args.codec) | {"seeds": args.seeds}
            done["rows"].append(row)
            save(done, args.out)
            left = (time.monotonic() - began) / i * (len(todo) - i) / 60
            print(
                f"{i}/{len(todo)} {name}, seed {seed}: {row['bits']['test']:.3f} bits per token "
                f"on test pairs; {left:.0f} minutes left",
                flush=True,
            )
    for row in done["rows"]:
        calls = VARIANTS[row["variant"]].calls
        if missing := [count for count in calls if str(count) not in row["pictures"]]:
            row["pictures"] |= measure.pictures(
                row["variant"], folder_of(args.work, row["variant"], row["seed"]), missing
            )
            save(done, args.out)
            print(f"pictures of {row['variant']}, seed {row['seed']}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; start again to try them again")


def folder_of(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(' ', '_')}-{seed}"


def train(
    args: argparse.Namespace, settings: dict[str, Any], name: str, seed: int
) -> dict[str, Any]:
    """A whole run; one that is there is over at once, one that was killed goes on."""
    folder = folder_of(args.work, name, seed)
    if not (folder / "vqvae").exists():
        shutil.copytree(args.codec / "vqvae", folder / ".vqvae", dirs_exist_ok=True)
        (folder / ".vqvae").rename(folder / "vqvae")
    flags = (
        {"seed": seed, "data.cache": (args.work / "cache").resolve(), "sampling.guidance": 2.0}
        | settings
        | VARIANTS[name].flags
    )
    program = (
        ["benchmarks/previous_state.py"]
        if VARIANTS[name].previous_state
        else ["-m", "vqd_jax.main"]
    )
    command = [
        sys.executable,
        *program,
        "--config=configs/emoji.py",
        f"--workdir={folder.resolve()}",
        *(f"--config.{key}={value}" for key, value in flags.items()),
    ]
    threads = max(len(os.sched_getaffinity(0)) // args.jobs, 1)  # of XLA, for each run
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str((args.work / "xla").resolve()),
        "NPROC": str(threads),
    }
    began = time.monotonic()
    with Path(f"{folder}.log").open("a") as log:
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment | os.environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return {
        "flags": {key: str(value) for key, value in VARIANTS[name].flags.items()},
        "seconds": round(time.monotonic() - began),
        "commit": provenance(folder)["commit"],
    }


def stage_of(name: str) -> contextlib.AbstractContextManager[None]:
    """The context in which the models of a variant are loaded."""
    if VARIANTS[name].previous_state:
        return diffusion_predicts_previous_state()
    return contextlib.nullcontext()


class Measure:
    """Bits per token and pictures of runs. The real pictures' features are computed once, for all
    of them.
    """

    def __init__(self, cache: Path):
        self.cache, self.scores = cache, None

    def load(self, name: str, folder: Path) -> tuple[pipeline.TextToImage, dict[str, list[int]]]:
        """The model, and the records of each part: of those seen in training only some."""
        with stage_of(name):
            model = pipeline.load(folder)
        if self.scores is None:
            evaluator = make_evaluator(protocols.with_overrides(**model.config.evaluation))
            self.scores = evaluation.Evaluation(
                model=model, evaluator=evaluator, cache=self.cache, settings={}
            )
        source = self.scores.source
        cells = batches.indices(source, "held_out_cells")
        return model, {
            "train": batches.spread(batches.indices(source, "train"), BOUND_IMAGES),
            "validation": cells[::2],
            "test": cells[1::2],
        }

    def bits(self, name: str, folder: Path) -> dict[str, Any]:
        """Bits per token of each part."""
        model, parts = self.load(name, folder)
        bound = held_out.Bound(
            stage=model.stage,
            tokenizer=model.tokenizer,
            draws=DRAWS,
            source=self.scores.source,
            tokens=self.scores.tokens(sum(parts.values(), [])),
        )
        prior = prior_term(model.stage.process) if model.stage.process else 0.0
        out = {part: bits(bound(model.weights, chosen) + prior) for part, chosen in parts.items()}
        jax.clear_caches()
        return {
            "parameters": sum(x.size for x in jax.tree.leaves(model.weights)),
            "bits": out,
            "pictures": {},
        }

    def pictures(self, name: str, folder: Path, calls: list[int]) -> dict[str, Any]:
        """Scores at each number of calls, of held-out pairs and of some seen in training."""
        (model, parts), scores, out = self.load(name, folder), self.scores, {}
        shown = {part: batches.spread(parts[part], count) for part, count in IMAGES.items()}
        for count in calls:
            out[str(count)] = {
                part: scores.score(self.draw(model, chosen, count), chosen)
                for part, chosen in shown.items()
            }
        jax.clear_caches()
        return out

    def draw(self, model: pipeline.TextToImage, chosen: list[int], calls: int) -> np.ndarray:
        prompts = [escape_prompt(self.scores.source.records[i].captions[0]) for i in chosen]
        return np.concatenate(
            [*model.batches(prompts, batches.ROWS, seed=self.scores.protocol.seed, calls=calls)]
        )


def speed(work: Path) -> dict[str, Any]:
    """Pictures per second of one batch, from captions to tokens, the best of three turns in which
    all take part.
    """
    models = {
        name: pipeline.load(folder_of(work, name, 0)) for name in ("default", "autoregressive")
    }
    runs = {f"{calls} calls": ("default", calls) for calls in VARIANTS["default"].calls} | {
        "autoregressive": ("autoregressive", 64)
    }
    prompts, best, load = ["a twitter style emoji of a crab"] * batches.ROWS, {}, os.getloadavg()[0]
    for turn in range(4):  # the first one compiles
        for row, (name, calls) in runs.items():
            began = time.perf_counter()
            models[name].tokens(prompts, calls=calls)
            rate = len(prompts) / (time.perf_counter() - began)
            best[row] = max(best.get(row, 0), rate if turn else 0)
    return {"images_per_second": best, "load": load, "batch": len(prompts), "cpus": os.cpu_count()}


def save(done: dict[str, Any], out: Path) -> None:
    with atomic_write(out) as part:
        part.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
