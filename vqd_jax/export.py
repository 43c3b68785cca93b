"""Makes a small workdir to give away: `python -m vqd_jax.export --workdir=runs/emoji --out=DIR`.

The same checkpoint format with only what sampling and evaluating need, in half precision, and the logs and curves' data.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vqd_jax import command, pipeline
from vqd_jax.checkpoint import Checkpoints
from vqd_jax.errors import UserError
from vqd_jax.log import METRICS

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir.")
_OUT = flags.DEFINE_string("out", None, "The folder to make; it must not exist or be empty of checkpoints.")
ITEMS = ("weights", "config", "tokenizer")


def main(argv: Any) -> None:
    if not _WORKDIR.value or not _OUT.value:
        raise UserError("--workdir and --out are both needed")
    workdir, out = Path(_WORKDIR.value), Path(_OUT.value)
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}")
    for stage in ("vqvae", "diffusion"):
        stored = Checkpoints(pipeline.stage_folder(workdir, stage), read_only=True)
        with Checkpoints(pipeline.stage_folder(out, stage), keep=1) as made:
            if made.latest_step() is not None:
                raise UserError(f"{made.folder} already holds a checkpoint; choose another --out")
            step = stored.latest_step()
            items = {name: stored.restore(name, step=step) for name in ITEMS if stored.has(name, step)}
            if "config" in items:
                items["config"]["data"]["cache"] = ""  # a path of the machine that trained
            half = lambda x: x.astype(np.float16) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x
            made.save(step, items | {"weights": jax.tree.map(half, items["weights"])}, wait=True)
        shutil.copy(workdir / stage / METRICS, out / stage / METRICS)
    if (plan := pipeline.plan_file(workdir)).exists():
        shutil.copy(plan, pipeline.plan_file(out))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
