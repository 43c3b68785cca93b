"""Foretells a training on devices that are not there: `vqd plan_memory --config=configs/X.py
--devices=N [--config.…]`.

Compiles the training step of every stage for N devices that this machine's processors stand in for,
from shapes alone: no data, no weights, no memory for either. Prints parameters and operations, the
bytes of each device, what the devices exchange, and for some accelerators the time of a step and
whether their memory is enough:

  time          = max(compute, memory) + communication
  compute       = operations of a device / peak
  memory        = (arguments + outputs + 2 x temporaries x parts of the batch) / bandwidth
  communication = sum of (bytes that a device sends around the ring of its group / speed of the
  link)

That is what a data sheet allows; programs reach a half of it. docs/scaling.md says more.
"""

import collections
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vqd_jax.cli import runner
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.hardware import CHIPS, Chip
from vqd_jax.runtime.sharding import parallelism
from vqd_jax.train import dry_run
from vqd_jax.train.cost.roofline import forecast
from vqd_jax.train.resume import with_model_of

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/, with :variant if it has any.", lock_config=True
)
_DEVICES = flags.DEFINE_integer("devices", 8, "How many devices there shall be.", lower_bound=1)
_CHIP = flags.DEFINE_string("chip", "", "Of which kind; H100, TPU v5e, v5p and v6e by default.")
_JSON = flags.DEFINE_string("json", "", "A file for all of it, and each collective by itself.")

USUAL = ("H100 SXM", "TPU v5e", "TPU v5p", "TPU v6e")


def chips(name: str) -> list[Chip]:
    """Those that have all the words of `name` in their own; the usual ones without a name."""
    known = {chip.name: chip for chip in CHIPS.values()}
    named = lambda x: {*name.lower().split()} <= {*x.lower().split()}
    found = [chip for x, chip in known.items() if (named(x) if name else x in USUAL)]
    if not found:
        raise UserError(f"no chip is called {name!r}; there are {', '.join(known)}")
    return found


def plan(config: Any, name: str, on: list[Chip]) -> dict[str, Any]:
    """All that is known of a stage on the devices here."""
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
    """The plan for people."""
    devices, size = math.prod(p["axes"].values()), p["bytes"]
    mesh = (
        f" ({' x '.join(f'{axis} {n}' for axis, n in p['axes'].items())})"
        if len(p["axes"]) > 1
        else ""
    )
    parts = f" in {p['parts']} parts" if p["parts"] > 1 else ""
    share = p["model_flop"] / devices / p["device_flop"]
    lines = [
        f"{p['stage']}: {p['parameters']:,} parameters, batches of {p['batch']}{parts} on "
        f"{devices} devices{mesh}",
        f"  operations: {p['model_flop'] / 1e12:.3g} TFLOP of the model in a step; each device "
        f"does {p['device_flop'] / 1e12:.3g}, "
        f"{100 * share:.0f} % of which are its share of them",
        f"  memory of each device: {_bytes(size['peak'])} at most",
        f"    arguments   {_bytes(size['arguments'])}: "
        + ", ".join(f"{name} {_bytes(n)}" for name, n in p["arguments"].items() if n),
        f"    temporaries {_bytes(size['temporaries'])}",
        f"    outputs     {_bytes(size['outputs'])}, of which {_bytes(size['in_place'])} in place "
        "of arguments",
        "  exchanges in a step" + (", and what each device sends:" if p["exchanges"] else ": none"),
    ]
    lines += [
        f"    {name:38}{row['count']:6} times {_bytes(row['bytes']):>10}"
        for name, row in p["exchanges"].items()
    ]
    lines += [
        "  "
        f"{'at most':14}{'compute':>11}{'memory':>11}{'exchange':>11}{'step':>11}{'examples/s':>12}"
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


def _bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"


def main(argv: Any) -> None:
    flag = flags.FLAGS["config"]
    runner.config_file(config_flags.get_config_filename(flag) if flag.present else "")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    config, on = _CONFIG.value, chips(_CHIP.value)
    config = with_model_of(config.init_from, config) if config.init_from else config
    plans = []
    for name in config.stages:
        plans.append(plan(config, name, on))
        print(table(plans[-1]), flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(plans, indent=1) + "\n")


def run() -> None:
    runner.run(main)
