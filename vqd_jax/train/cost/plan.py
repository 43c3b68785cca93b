"""Memory and step time of a training run on hardware that is not at hand (`vqd plan_memory`)."""

import collections
import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.hardware import CHIPS, Chip
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.train import dry_run
from vqd_jax.train.cost.roofline import forecast

USUAL = ("H100 SXM", "TPU v5e", "TPU v5p", "TPU v6e")


def chips(name: str) -> list[Chip]:
    """The chips whose names contain all words of `name`; those of USUAL without a name."""
    known = {chip.name: chip for chip in CHIPS.values()}
    named = lambda x: {*name.lower().split()} <= {*x.lower().split()}
    found = [chip for x, chip in known.items() if (named(x) if name else x in USUAL)]
    if not found:
        raise UserError(f"no chip is called {name!r}; there are {', '.join(known)}")
    return found


def plan(config: ConfigDict, name: str, on: list[Chip]) -> dict[str, Any]:
    """Parameters, operations, memory and communication of a stage's training step on the devices of
    this process, and its time on the chips.
    """
    parallel = parallelism(**config.parallel)
    step = dry_run.dry_run(config, name)
    compiled = step.compile(parallel)
    exchanges = collections.defaultdict(lambda: {"count": 0, "bytes": 0.0})
    for c in compiled.collectives:
        row = exchanges[f"{c.kind} over {' x '.join(c.axes) or 'some devices'}"]
        row["count"], row["bytes"] = row["count"] + c.count, row["bytes"] + c.moved
    forecasts = [
        forecast(
            chip, compiled.size, compiled.products, compiled.collectives, step.train.accumulate
        )
        for chip in on
    ]
    return {
        "stage": name,
        "axes": parallel.axes,
        "batch": step.train.batch_size,
        "parts": step.train.accumulate,
        "parameters": sum(x.size for x in jax.tree.leaves(step.state.params)),
        "model_flop": step.flops(),
        "device_flop": compiled.products,
        "bytes": dataclasses.asdict(compiled.size) | {"peak": compiled.size.peak},
        "arguments": compiled.arguments,
        "exchanges": dict(sorted(exchanges.items(), key=lambda x: -x[1]["bytes"])),
        "chips": [
            {"chip": f.chip.name}
            | {x: getattr(f, x) for x in ("compute", "memory", "communication", "seconds", "fits")}
            for f in forecasts
        ],
    }


def table(p: dict[str, Any]) -> str:
    """The plan as a table for people."""
    devices, size = math.prod(p["axes"].values()), p["bytes"]
    mesh = (
        f" ({' x '.join(f'{axis} {n}' for axis, n in p['axes'].items())})"
        if len(p["axes"]) > 1
        else ""
    )
    micro = f" in {p['parts']} micro-batches" if p["parts"] > 1 else ""
    share = p["model_flop"] / devices / p["device_flop"]
    lines = [
        f"{p['stage']}: {p['parameters']:,} parameters, batches of {p['batch']}{micro} on "
        f"{devices} devices{mesh}",
        f"  operations: {p['model_flop'] / 1e12:.3g} TFLOP of the model per step; each device "
        f"does {p['device_flop'] / 1e12:.3g}, {100 * share:.0f} % of which is its share of the "
        "model's",
        f"  memory per device: {_bytes(size['peak'])} at most",
        f"    arguments   {_bytes(size['arguments'])}: "
        + ", ".join(f"{name} {_bytes(n)}" for name, n in p["arguments"].items() if n),
        f"    temporaries {_bytes(size['temporaries'])}",
        f"    outputs     {_bytes(size['outputs'])}, {_bytes(size['in_place'])} of it in place of "
        "arguments",
        "  communication per step"
        + (", with the bytes that each device sends:" if p["exchanges"] else ": none"),
    ]
    lines += [
        f"    {name:38}{row['count']:6} times {_bytes(row['bytes']):>10}"
        for name, row in p["exchanges"].items()
    ]
    lines += [
        f"  {'chip':14}{'compute':>11}{'memory':>11}{'network':>11}{'step':>11}{'examples/s':>12}"
    ]
    for f in p["chips"]:
        times = "".join(
            f"{1e3 * f[key]:8.2f} ms" for key in ("compute", "memory", "communication", "seconds")
        )
        lines.append(
            f"  {f['chip']:14}{times}{p['batch'] / f['seconds']:12,.0f}  "
            f"{'fits' if f['fits'] else 'does not fit'}"
        )
    return "\n".join(lines)


def _bytes(n: int | float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"
