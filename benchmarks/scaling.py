"""The two large text models on TPU v5e, v6e and H100, 1 to 64 chips, as the chips' own compilers
see them: `vqd plan_memory` of configs/coco.py (389 million parameters) and configs/ithq.py (1.36
billion), training and sampling.

  python benchmarks/scaling.py --out=results/scaling.json --tables=docs/scaling.md

It compiles for the chips whose compiler is installed beside this Python (jax[tpu] or jax[cuda12]):
run it in an environment of each. Rows that the file has already are kept. Nothing is trained. A
program that does not fit has a row with what its compiler says.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"base": "configs/coco.py", "large": "configs/ithq.py"}
# (chip, model, images of a batch for each chip, options of config.parallel and config.denoiser)
FSDP = ["parallel.strategy=mesh", "parallel.fsdp={}"]
TRAINING = [
    ("v5e:2x2", "base", 8, FSDP, 4),
    ("v5e:8x8", "base", 8, FSDP, 16),
    ("v6e:2x2", "base", 16, FSDP, 4),
    ("v6e:8x8", "base", 16, FSDP, 16),
    ("h100:1x1x1", "base", 32, [], 1),
    ("h100:1x1x8", "base", 32, [], 1),
    ("h100:8x1x8", "base", 32, [], 1),
    ("v5e:4x4", "large", 2, FSDP, 16),
    ("v5e:8x8", "large", 2, FSDP, 16),
    ("v6e:4x4", "large", 4, FSDP, 16),
    ("h100:1x1x1", "large", 4, [], 1),
    ("h100:1x1x8", "large", 16, FSDP, 8),
    ("h100:8x1x8", "large", 16, FSDP, 8),
]
SAMPLING = [
    (chip, model, rows)
    for chip, rows in (("v5e:2x2", 4), ("v6e:2x2", 8), ("h100:1x1x1", 16))
    for model in MODELS
]
COMPILERS = {"h100": "jax_cuda12_plugin"}  # of the other chips it is libtpu


def commands() -> list[tuple[str, str, list[str]]]:
    """(kind, model, arguments) of every row."""
    out = []
    for chip, model, rows, parallel, fsdp in TRAINING:
        devices = 1
        for size in chip.partition(":")[2].split("x"):
            devices *= int(size)
        settings = [x.format(fsdp) for x in parallel]
        settings += [f"diffusion_train.batch_size={rows * devices}", "denoiser.scan=True"]
        settings += ["diffusion_train.accumulate=1"] * (model == "large")
        out.append(("training", model, [f"--chip={chip}", *settings]))
    for chip, model, rows in SAMPLING:
        arguments = [f"--chip={chip}", "--sample", f"--batch={rows}", "denoiser.scan=True"]
        out.append(("sampling", model, arguments))
    return out


def plan(kind: str, model: str, arguments: list[str]) -> dict | None:
    """A row: what `vqd plan_memory` says, or that the program does not fit; None if it failed."""
    given = [x if x.startswith("--") else f"--config.{x}" for x in arguments]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vqd_jax", "plan_memory", f"--config={MODELS[model]}"]
        command += ["--config.stages=('diffusion',)", f"--json={folder}/plan", *given]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        print(done.stdout, done.stderr[-2000:], flush=True)
        row = {"kind": kind, "model": model, "arguments": arguments}
        row["compile_seconds"] = time.perf_counter() - started
        if done.returncode:
            error = done.stderr.strip().splitlines()[-1]
            if "does not fit" not in error:
                print(f"failed: {' '.join(command)}", flush=True)
                return None
            return row | {"error": error}
        return row | {"plans": json.loads((Path(folder) / "plan").read_text())}


def tables(rows: list[dict]) -> dict[str, str]:
    """The name of each mark and what belongs between it and its end."""
    out = {}
    gb = lambda n: f"{n / 1e9:.1f} GB"
    for kind in ("training", "sampling"):
        what = "images/s" if kind == "training" else "images/s with decoding"
        lines = [
            "| model | chips | images | memory of a chip | arguments | temporaries | collectives | "
            f"by the compiler's cycles | {what}, at most |",
            "|---" * 9 + "|",
        ]
        for row in rows:
            if row["kind"] != kind:
                continue
            chip = row["arguments"][0].partition("=")[2]
            if "error" in row:
                lines.append(f"| {row['model']} | {chip} | {row['error']} |" + " |" * 6)
                continue
            first, memory = row["plans"][0], row["plans"][0]["memory"]
            seconds = [p["seconds"].get("by the compiler's cycles") for p in row["plans"]]
            time_, rate = "", ""
            if all(seconds):
                time_ = f"{1e3 * sum(seconds):,.0f} ms"
                rate = f"{first['images'] / sum(seconds):,.1f}"
            sent = ", ".join(
                f"{name} {size / 1e9:.2f} GB"
                for name, (_, size) in first["collectives"].items()
                if size >= 1e7
            )
            lines.append(
                f"| {row['model']} | {chip} | {first['images']} | {gb(memory['peak'])} | "
                f"{gb(memory['arguments'])} | {gb(memory['temporaries'])} | {sent or 'none'} | "
                f"{time_} | {rate} |"
            )
        out[kind] = "\n".join(lines)
    return out


def put(text: str, name: str, table: str) -> str:
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}\n{table}\n\n{m[2]}",
        text,
        flags=re.DOTALL,
    )


def versions() -> dict:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return {
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    parser.add_argument(
        "--tables", type=Path, help="a file with the marks, such as docs/scaling.md"
    )
    parser.add_argument("--only", default="", help="chips whose names contain this")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["training", "sampling"],
        choices=["training", "sampling"],
        help="rows of these alone",
    )
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    key = lambda row: (row["kind"], row["model"], row["arguments"])
    order = [*commands()]
    for kind, model, arguments in order:
        chip = arguments[0].partition("=")[2]
        compiler = COMPILERS.get(chip.partition(":")[0], "libtpu")
        if (
            args.only not in chip
            or kind not in args.kinds
            or importlib.util.find_spec(compiler) is None
        ):
            continue
        if (kind, model, arguments) not in map(key, rows):
            if not (row := plan(kind, model, arguments)):
                continue
            rows.append(row | {"with": versions()})
            rows.sort(key=lambda row: order.index(key(row)))
            args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if args.tables:
        text = args.tables.read_text()
        for name, table in tables(rows).items():
            text = put(text, name, table)
        args.tables.write_text(text)


if __name__ == "__main__":
    main()
