"""How training grows over devices: what they exchange, as compiled here for up to 8 devices and 4
processes, and two models on paper.

  python benchmarks/scaling.py --out=results/scaling.json --tables=docs/scaling.md

`measured` compiles the second stage of configs/emoji.py, with AdamW, for 1, 2, 4 and 8 CPU devices,
and in 2 and 4 processes that meet on this machine, and reads from each program how many bytes a
device sends in a step: with the batch of the config over all of them (strong), and with so many
pictures for each (weak). `base` and `large` are `vqd plan_memory` of configs/coco.py and
configs/ithq.py for 1 to 256 devices. Rows that the file has already are kept. Nothing is trained
and no time is taken: the times are those of data sheets. Tables are put between the marks in the
file that --tables names.
"""

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH, ROWS = 64, 8  # of strong scaling; of each device in weak scaling
LAYOUTS = {"pmap": [], "fsdp": ["parallel.strategy=mesh", "parallel.fsdp={}"]}
MODELS = {"base": "configs/coco.py", "large": "configs/ithq.py"}
COMMON = ["stages=('diffusion',)", "denoiser.scan=True", "denoiser.remat=full"]
SHOWN = ("H100 SXM", "TPU v5p", "TPU v5e")


def options(layout: str, devices: int, batch: int, parts: int = 1) -> list[str]:
    """Of a command, without --config."""
    return [
        *(x.format(devices) for x in LAYOUTS[layout]),
        f"diffusion_train.batch_size={batch}",
        f"diffusion_train.accumulate={parts}",
    ]


def exchanged(devices: int) -> list[dict]:
    """What each device sends in this process, on its first devices and those of the others:
    `devices` altogether.
    """
    import jax

    sys.path.insert(0, str(ROOT / "configs"))
    import emoji

    from vqd_jax.runtime.parallel import parallelism
    from vqd_jax.train import dry_run

    rows = []
    for layout in LAYOUTS:
        for scaling, batch in {"strong": BATCH, "weak": ROWS * devices}.items():
            if scaling == "weak" and (batch == BATCH or jax.process_count() > 1):
                continue  # the same program; processes are looked at by strong scaling
            c = emoji.get_config()
            c.diffusion_optim.muon, c.denoiser.scan = 0.0, True
            c.diffusion_train.batch_size, c.parallel.devices = batch, devices // jax.process_count()
            c.parallel.strategy, c.parallel.fsdp = (
                ("mesh", devices) if layout == "fsdp" else ("pmap", 1)
            )
            compiled = dry_run.dry_run(c, "diffusion").compile(parallelism(**c.parallel))
            sent = {}
            for x in compiled.collectives:
                sent[x.kind] = sent.get(x.kind, 0) + x.moved
            rows.append(
                {
                    "layout": layout,
                    "scaling": scaling,
                    "devices": devices,
                    "processes": jax.process_count(),
                    "batch": batch,
                    "sent": sent,
                    "flop": compiled.products,
                    "parameters": compiled.arguments["parameters"],
                }
            )
            print(rows[-1], flush=True)
    return rows


def measured(known: list[dict]) -> Iterator[dict]:
    """Compiles for devices of one process, then for processes of one device; skips known rows."""
    for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (4, 4)):
        if not any((row["processes"], row["devices"]) == (processes, devices) for row in known):
            yield from together(processes, devices)


def together(processes: int, devices: int) -> list[dict]:
    """What the first of so many processes, which share that many devices, has to say."""
    with socket.socket() as s, tempfile.TemporaryDirectory() as folder:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}" if processes > 1 else ""
        s.close()
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            __file__,
            f"--coordinator={coordinator}",
            f"--processes={processes}",
            f"--devices={devices}",
        ]
        running = [
            subprocess.Popen([*command, f"--process={i}", f"--out={folder}/{i}"], env=env)
            for i in range(processes)
        ]
        if any([process.wait() for process in running]):
            sys.exit(f"one of {processes} processes failed")
        said = [json.loads((Path(folder) / str(i)).read_text()) for i in range(processes)]
        assert all(x == said[0] for x in said), "the processes compiled different programs"
        return said[0]


def planned(model: str, known: list[dict]) -> Iterator[dict]:
    """Plans weak scaling by layout and strong scaling of the smaller model; skips known rows."""
    wanted = [
        ("weak", layout, n, ROWS * n, 1)
        for layout, sizes in {"pmap": (1, 256), "fsdp": (8, 64, 256)}.items()
        for n in sizes
    ]
    wanted += (
        [("strong", "pmap", n, 256, max(256 // ROWS // n, 1)) for n in (8, 256)]
        if model == "base"
        else []
    )
    known = [(row["scaling"], row["layout"], row["devices"]) for row in known]
    for scaling, layout, devices, batch, parts in (row for row in wanted if row[:3] not in known):
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"--config.{x}" for x in COMMON + options(layout, devices, batch, parts)]
            command = [
                sys.executable,
                "-m",
                "vqd_jax",
                "plan_memory",
                f"--config={MODELS[model]}",
                f"--devices={devices}",
                *settings,
            ]
            started = time.perf_counter()
            done = subprocess.run(
                [*command, f"--json={folder}/plan"], cwd=ROOT, text=True, capture_output=True
            )
            print(done.stdout, done.stderr, flush=True)
            if done.returncode:
                sys.exit(f"failed: {' '.join(command)}")
            yield {
                "scaling": scaling,
                "layout": layout,
                "devices": devices,
                "options": settings,
                "seconds": time.perf_counter() - started,
            } | json.loads((Path(folder) / "plan").read_text())[0]


def tables(results: dict) -> dict[str, str]:
    """The name of each mark and what belongs between it and its end."""
    out = {}
    if "measured" in results:
        lines = [
            "| | devices | processes | pictures | sent by a device: reduced | gathered | rest | "
            "operations |",
            "|---" * 8 + "|",
        ]
        for r in results["measured"]["rows"]:
            kinds = dict(r["sent"])
            reduced, gathered = (
                kinds.pop("all-reduce", 0) + kinds.pop("reduce-scatter", 0),
                kinds.pop("all-gather", 0),
            )
            lines.append(
                f"| {r['layout']}, {r['scaling']} | {r['devices']} | {r['processes']} | "
                f"{r['batch']} | {reduced / 1e6:.2f} MB | "
                f"{gathered / 1e6:.2f} MB | {sum(kinds.values()) / 1e6:.2f} MB | "
                f"{r['flop'] / 1e9:.2f} GFLOP |"
            )
        out["measured"] = "\n".join(lines)
    for model in MODELS:
        if model in results:
            head = "".join(f" {name}: step, exchange |" for name in SHOWN)
            lines = [
                f"| | devices | batch | memory of a device | state | temporaries | sent |{head}",
                "|---" * (7 + len(SHOWN)) + "|",
            ]
            for r in results[model]["rows"]:
                chips = {x["chip"]: x for x in r["chips"]}
                cells = "".join(_cell(chips[name]) for name in SHOWN)
                batch = f"{r['batch']}" + (f" in {r['parts']}" if r["parts"] > 1 else "")
                sent, size = sum(x["bytes"] for x in r["exchanges"].values()), r["bytes"]
                lines.append(
                    f"| {r['layout']}, {r['scaling']} | {r['devices']} | {batch} | "
                    f"{size['peak'] / 1e9:.1f} GB | "
                    f"{size['arguments'] / 1e9:.1f} GB | {size['temporaries'] / 1e9:.1f} GB | "
                    f"{sent / 1e9:.2f} GB |{cells}"
                )
            out[model] = "\n".join(lines)
    return out


def _cell(chip: dict) -> str:
    """Milliseconds of a step, and the share of it that the exchange takes."""
    time = f"{1e3 * chip['seconds']:.0f} ms, {100 * chip['communication'] / chip['seconds']:.0f} %"
    return f" {time} |" if chip["fits"] else f" ({time}) |"


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_gb": memory,
        "machine": platform.processor() or platform.machine(),
        "load_average": os.getloadavg(),
        "seed": 0,
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
    parser.add_argument(
        "--parts", nargs="*", default=["measured", *MODELS], choices=["measured", *MODELS]
    )
    for name in ("--coordinator", "--processes", "--process", "--devices"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.devices:
        from vqd_jax.runtime import distributed

        distributed.initialize(
            args.coordinator,
            *([int(args.processes), int(args.process)] if args.coordinator else []),
        )
        args.out.write_text(json.dumps(exchanged(int(args.devices))))
        return
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        old = results.get(part, {}).get("rows", [])
        results[part] = versions() | {"rows": [*old]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for row in measured(old) if part == "measured" else planned(part, old):
            results[part]["rows"].append(row)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.tables:
        text = args.tables.read_text()
        for name, table in tables(results).items():
            text = put(text, name, table)
        args.tables.write_text(text)


if __name__ == "__main__":
    main()
