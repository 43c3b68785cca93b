"""Every sampler at several numbers of calls, temperatures and guidance scales on one trained model:
quality and speed, as JSON and a plot.

  python benchmarks/samplers.py --workdir=pretrained/emoji --out=results/samplers.json
  python benchmarks/samplers.py --workdir=pretrained/emoji64 --samplers ancestral --calls 25 \\
      --temperatures 0.5 0.7 0.9 --guidances 1 1.25 1.5 2.5 4 --out=results/guidance.json

The cells that training left out are cut in two by their position: settings are chosen on the first
half (validation) and reported on the second (test), beside cells that were trained on. The file is
written after every row, and rows that are in it are not computed again, so the run can be stopped.
`--speed` adds how fast each is, for which the machine should be idle; `--plot` only draws. Planned
counts need a plan in the workdir (vqd plan).
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from vqd_jax.data import batches
from vqd_jax.eval import evaluation, protocols
from vqd_jax.eval.evaluator import make_evaluator
from vqd_jax.eval.run import provenance
from vqd_jax.inference import pipeline
from vqd_jax.inference.prompts import escape_prompt

SAMPLERS = {
    "released_fast": dict(sampler="released_fast"),
    "prior_rule": dict(sampler="prior_rule"),
    "ancestral": dict(sampler="ancestral"),
    "remask": dict(sampler="remask"),
    "counts": dict(sampler="counts", counts="uniform"),
    "confidence": dict(sampler="counts", order="confidence", counts="uniform"),
    "halton": dict(sampler="counts", order="halton", counts="uniform"),
    "planned": dict(sampler="counts", counts="planned"),
    "halton planned": dict(sampler="counts", order="halton", counts="planned"),
    "planned, polished": dict(sampler="counts", counts="planned", polish=0.25),
    "planned, polished, from x_T": dict(
        sampler="counts", counts="planned", polish=0.25, origin="process"
    ),
}
CALLS = (4, 8, 16, 25, 50, 100)
TEMPERATURES = (0.7, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="pretrained/emoji")
    parser.add_argument("--out", type=Path, default=Path("results/samplers.json"))
    parser.add_argument(
        "--images", type=int, default=144, help="pictures per part: seen, validation and test cells"
    )
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--calls", nargs="*", type=int, default=CALLS)
    parser.add_argument("--temperatures", nargs="*", type=float, default=TEMPERATURES)
    parser.add_argument(
        "--guidances", nargs="*", type=float, help="scales; by default that of the workdir"
    )
    parser.add_argument("--cache")
    parser.add_argument("--speed", action="store_true", help="time the samplers instead")
    parser.add_argument("--plot", action="store_true", help="draw what the file holds")
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if args.speed:
        speed(args, done)
    elif not args.plot:
        measure(args, done)
    plot(done["rows"], args.out.with_suffix(".png"))


def measure(args: argparse.Namespace, done: dict) -> None:
    model = pipeline.load(args.workdir)
    protocol = protocols.with_overrides(**dict(model.config.evaluation) | {"images": args.images})
    scores = evaluation.Evaluation(
        model=model,
        evaluator=make_evaluator(protocol),
        settings={},
        cache=evaluation.cache_folder(args.cache, Path(args.workdir)),
    )
    held_out = batches.indices(scores.source, "held_out_cells")
    several = lambda cells: batches.spread(
        cells * -(-args.images // len(cells)), args.images
    )  # pictures of a cell, by other noise
    parts = {
        "seen": batches.spread(batches.indices(scores.source, "train"), args.images),
        "validation": several(held_out[::2]),
        "test": several(held_out[1::2]),
    }
    done |= {
        "provenance": provenance(Path(args.workdir)),
        "protocol": {
            "images": {k: len(v) for k, v in parts.items()},
            "seed": protocol.seed,
            "sampling": dict(model.config.sampling),
        },
    }
    done["ceiling"] = {part: scores.ceiling(sorted(set(chosen))) for part, chosen in parts.items()}
    prompts = lambda cells: [escape_prompt(scores.source.records[i].captions[0]) for i in cells]
    guidances = args.guidances or [model.config.sampling.guidance]
    varied = ("sampler", "calls", "temperature", "guidance")
    known = [{key: row.get(key, guidances[0]) for key in varied} for row in done["rows"]]
    for name in args.samplers:
        for calls in args.calls:
            for temperature, guidance in itertools.product(args.temperatures, guidances):
                chosen = settings(name, calls, model.stage.tokens)
                row = dict(zip(varied, (name, calls, temperature, guidance), strict=True))
                if row in known or not chosen:
                    continue
                for part, cells in parts.items():
                    made = model.batches(
                        prompts(cells),
                        batches.ROWS,
                        seed=protocol.seed,
                        temperature=temperature,
                        guidance=guidance,
                        **chosen,
                    )
                    row[part] = scores.score(np.concatenate([*made]), cells)
                done["rows"].append(row)
                save(done, args.out)
                print(
                    f"{name:27} {calls:3} calls  temperature {temperature}  guidance {guidance}: "
                    f"retrieval@1 {row['seen']['retrieval@1']:.3f} seen "
                    f"{row['validation']['retrieval@1']:.3f} validation "
                    f"{row['test']['retrieval@1']:.3f} test",
                    flush=True,
                )
            jax.clear_caches()


def settings(name: str, calls: int, n: int) -> dict:
    """Keywords of a sampler at that many calls; none if it cannot have them."""
    out = dict(SAMPLERS[name], calls=calls)
    if out.get("polish"):
        out["polish"] = max(round(out["polish"] * calls), 1)
    return {} if out["sampler"] == "counts" and calls - out.get("polish", 0) > n else out


def speed(args: argparse.Namespace, done: dict) -> None:
    """Measures images per second: a batch of 64, the better of two runs, the config's guidance."""
    model = pipeline.load(args.workdir)
    n = model.stage.tokens
    prompts = ["a twitter style emoji of a crab"] * batches.ROWS
    rates = done.setdefault("images_per_second", {})
    for name in args.samplers:
        for calls in args.calls:
            if not (chosen := settings(name, calls, n)):
                continue
            model.tokens(prompts, **chosen)  # compiles
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                model.tokens(prompts, **chosen)
                seconds.append(time.perf_counter() - started)
            rates.setdefault(name, {})[str(calls)] = len(prompts) / min(seconds)
            save(done, args.out)
            print(
                f"{name:27} {calls:3} calls: {len(prompts) / min(seconds):.1f} images/s", flush=True
            )
            jax.clear_caches()


def save(done: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(done, indent=1) + "\n")
    part.replace(out)


def plot(rows: list[dict], out: Path) -> None:
    """Quality against calls, each sampler at the temperature and guidance that are best for it on
    validation cells.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = (("validation", "vgg_kid"), ("test", "vgg_kid"), ("test", "retrieval@1"))
    names = dict.fromkeys(row["sampler"] for row in rows)
    for color, name in zip(
        (*pyplot.get_cmap("tab10").colors, "black"), names, strict=len(names) > 10
    ):
        best = {}
        for row in (row for row in rows if row["sampler"] == name):
            calls = row["calls"]
            if (
                calls not in best
                or row["validation"]["vgg_kid"] < best[calls]["validation"]["vgg_kid"]
            ):
                best[calls] = row
        for axis, (part, metric) in zip(axes, panels):
            axis.plot(
                sorted(best),
                [best[calls][part][metric] for calls in sorted(best)],
                "o-",
                markersize=4,
                color=color,
                label=name,
            )
    for axis, (part, metric) in zip(axes, panels):
        axis.set(
            title=f"{ {'vgg_kid': 'VGG-KID'}.get(metric, metric) }, {part} cells",
            xlabel="network calls",
            xscale="log",
        )
        axis.set_xticks(CALLS, CALLS)
        axis.minorticks_off()
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center"
    )
    figure.savefig(out, dpi=120, metadata={"Software": "vqd_jax"})
    print(out)


if __name__ == "__main__":
    main()
