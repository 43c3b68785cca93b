"""Trains: `python -m vqd_jax.main --config=configs/emoji.py [--workdir=DIR]
[--config.section.key=value]`.

Runs the config's stages in order in the workdir; each resumes from its own checkpoint, runs, or is
skipped as done. On several machines the same command runs on each, with --coordinator=HOST:PORT
--processes=N --process=I added, as launch/ does.
"""

import contextlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from vqd_jax.cli import runner

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/, with :variant if it has any.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written; runs/<config> by default."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "To train in several processes: HOST:PORT of the first one, or auto on a TPU pod.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def main(argv: Any) -> None:
    import jax

    from vqd_jax.config import build
    from vqd_jax.core.files import remove_leftovers
    from vqd_jax.inference import pipeline
    from vqd_jax.runtime import distributed
    from vqd_jax.runtime.workdir import lock_workdir
    from vqd_jax.train.experiment import Experiment

    flag = flags.FLAGS["config"]
    workdir = runner.workdir(
        config_flags.get_config_filename(flag) if flag.present else "", _WORKDIR.value
    )
    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    pipeline.compilation_cache()
    primary = jax.process_index() == 0
    with lock_workdir(workdir) if primary else contextlib.nullcontext():
        if primary:
            for folder in (workdir, *(workdir / name for name in ("vqvae", *build.TOKEN_STAGES))):
                remove_leftovers(folder)
        experiment = Experiment(_CONFIG.value, workdir)
        experiment.run()
        experiment.finish()


def run() -> None:
    from vqd_jax.runtime import distributed, signals

    signals.listen()
    with distributed.exit_on_error():
        runner.run(main, again="goes on from the last checkpoint")
