"""Estimate memory and step time on hardware you don't have.

  vqd plan_memory --config=configs/X.py --devices=N [--config.SECTION.KEY=VALUE ...]

Compiles the training step of every stage for N devices, which the processors of this machine stand
in for, from shapes alone: no data and no weights are needed. Prints parameters, operations, memory
per device, communication between devices, and for each chip the time of a step and whether the
memory suffices:

  time          = max(compute, memory) + communication
  compute       = operations per device / peak
  memory        = (arguments + outputs + 2 x temporaries x micro-batches) / bandwidth
  communication = sum of (bytes that a device sends around the ring of its group / link speed)

This is an upper bound from data sheets; real programs reach about half of it (docs/scaling.md).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli import runner
from vqd_jax.cli.flags import define_config_flag


def define_flags(options: flags.FlagValues) -> None:
    define_config_flag(options)
    flags.DEFINE_integer("devices", 8, "number of devices", lower_bound=1, flag_values=options)
    flags.DEFINE_string(
        "chip", "", "kind of device; H100, TPU v5e, v5p and v6e by default", flag_values=options
    )
    flags.DEFINE_string(
        "json",
        "",
        "JSON file to write, with every collective operation listed",
        flag_values=options,
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    runner.config_file(options)

    import jax

    from vqd_jax.train.cost.plan import chips, plan, table
    from vqd_jax.train.resume import with_model_of

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    config, on = options.config, chips(options.chip)
    config = with_model_of(config.init_from, config) if config.init_from else config
    plans = []
    for name in config.stages:
        plans.append(plan(config, name, on))
        print(table(plans[-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(plans, indent=1) + "\n")
