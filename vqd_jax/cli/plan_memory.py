"""Plan memory and speed on hardware you don't have, with its own compiler.

  vqd plan_memory --config=configs/X.py --chip=v5e:2x2 [--sample] [--config.SECTION.KEY=VALUE ...]

Compiles the training step of every stage, or with --sample the sampler and the decoder, for the
chips that --chip names: TPU slices (v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x2, ...), NVIDIA GPUs by
hosts and GPUs (h100:1x1x8, h200:1x1x1, a100:1x1x8), or CPU devices (cpu:8). No chip, data or
weights are needed, only the compiler: pip install "jax[tpu]" or "jax[cuda12]". Prints bytes on each
device, collectives, kernels of libraries, and on TPUs the cycles that the compiler expects.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli import runner
from vqd_jax.cli.flags import define_config_flag
from vqd_jax.core.errors import UserError


def define_flags(options: flags.FlagValues) -> None:
    define_config_flag(options)
    flags.DEFINE_string("chip", "v5e:2x2", "kind and topology of the devices", flag_values=options)
    flags.DEFINE_boolean("sample", False, "plan sampling instead of training", flag_values=options)
    flags.DEFINE_integer(
        "batch", 16, "images a device samples at a time", lower_bound=1, flag_values=options
    )
    flags.DEFINE_string("json", "", "JSON file to write", flag_values=options)


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    runner.config_file(options)

    from vqd_jax.train.cost.targets import prepare_environment, target

    prepare_environment(options.chip)

    from vqd_jax.train.cost.plan import plan_sampling, plan_training, table
    from vqd_jax.train.resume import with_model_of

    on, config = target(options.chip), options.config
    config = with_model_of(config.init_from, config) if config.init_from else config
    # decoding is planned with the stage that samples
    stages = [name for name in config.stages if not (options.sample and name == "vqvae")]
    if not stages:
        raise UserError("the stage vqvae alone samples nothing: leave out --sample")
    plans = []
    for name in stages:
        if options.sample:
            found = plan_sampling(config, name, on, options.batch)
        else:
            found = [plan_training(config, name, on)]
        for plan in found:
            print(table(plan), flush=True)
        plans += found
    if options.json:
        Path(options.json).write_text(json.dumps(plans, indent=1) + "\n")
