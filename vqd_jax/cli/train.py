"""Train a model: all stages of a config, in order.

  vqd train --config=emoji [--workdir=DIR] [--config.SECTION.KEY=VALUE ...]

`python -m vqd_jax.main` is the same command. Each stage resumes from its latest checkpoint in the
workdir, and is skipped when it is finished. To train on several machines, run the same command on
each with --coordinator=HOST:PORT --processes=N --process=I, as the scripts in launch/ do.
"""

import contextlib
import os
from collections.abc import Sequence

from absl import flags

from vqd_jax.cli import runner
from vqd_jax.cli.flags import define_config_flag
from vqd_jax.core.shipped import model_path

AGAIN = "resumes from the last checkpoint"


def define_flags(options: flags.FlagValues) -> None:
    define_config_flag(options)
    flags.DEFINE_string(
        "workdir",
        None,
        "folder for everything that is written; runs/<config> by default",
        flag_values=options,
    )
    flags.DEFINE_boolean(
        "allow_changes",
        False,
        "resume although the seed or the data are not those of the run so far",
        flag_values=options,
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0, for training in several processes; auto on a TPU pod",
        flag_values=options,
    )
    flags.DEFINE_integer("processes", None, "number of processes", flag_values=options)
    flags.DEFINE_integer("process", None, "index of this process, from 0", flag_values=options)


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    workdir = runner.training_workdir(options)
    options.config.init_from = os.fspath(model_path(options.config.init_from))
    if options.config.deterministic:
        runner.make_gpus_deterministic()

    from vqd_jax.runtime import signals

    signals.install_handlers()

    import jax

    from vqd_jax.runtime import distributed
    from vqd_jax.runtime.workdir import Workdir
    from vqd_jax.train.experiment import Experiment

    distributed.initialize(options.coordinator, options.processes, options.process)
    primary = jax.process_index() == 0
    experiment = Experiment(options.config, workdir, options.allow_changes)
    with Workdir(workdir).training() if primary else contextlib.nullcontext():
        experiment.run()
        experiment.finish()
