"""A model to give away: `vqd export --workdir=runs/emoji [--out=...] [--format=...]`.

`safetensors` is one file with all arrays, the configs and the tokenizer; `diffusers` the folder of
its VQDiffusionPipeline, for the models that fit into it; `vqd convert` makes a workdir of either
again. `workdir` is a small workdir: only what sampling and evaluating need, in half precision, and
the logs and curves' data.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vqd_jax.cli import runner
from vqd_jax.config import build
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, remove_on_error
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.inference import pipeline
from vqd_jax.models.weights import diffusers, exported
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.log import METRICS
from vqd_jax.runtime.workdir import stage_folder

ENDINGS = {"safetensors": ".safetensors", "diffusers": "-diffusers", "workdir": "-small"}
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A trained or converted workdir; nothing in it is changed."
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "What to make, a file or folder that does not exist yet; beside the workdir by default: "
    + ", ".join(f"WORKDIR{ending}" for ending in ENDINGS.values()),
)
_FORMAT = flags.DEFINE_enum(
    "format", "safetensors", [*ENDINGS], "One file, a folder for diffusers, or a small workdir."
)
Plan = dict[str, np.ndarray]


def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: a trained workdir to export")
    workdir, make = Path(_WORKDIR.value), _FORMAT.value
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}")
    named = workdir if workdir.name.strip(".") else workdir.resolve()
    out = Path(_OUT.value or f"{named}{ENDINGS[make]}")
    if make == "safetensors" and out.suffix != ".safetensors":
        raise UserError(f"the name of the file must end in .safetensors, got --out={out}")
    if os.path.lexists(out) and not (
        make == "workdir" and out.is_dir() and not any(out.glob("*/*"))
    ):  # a README may be there
        raise UserError(f"{out} exists already; choose another --out")
    stages = stored(workdir)
    plan = pipeline.read_plan(workdir) if "diffusion" in stages else {}
    {"safetensors": one_file, "diffusers": diffusers_folder, "workdir": small_workdir}[make](
        workdir, out, stages, plan
    )
    size = sum(f.stat().st_size for f in [out, *out.rglob("*")] if f.is_file())
    held = (
        "codec and " + " and ".join(name for name in stages if name != "vqvae")
        if len(stages) > 1
        else "a codec alone"
    )
    left = (
        "no plan, as the workdir has none"
        if not plan
        else "without the plan"
        if make == "diffusers"
        else "and the plan"
    )
    print(f"{out}: {size / 1e6:.1f} MB, {held}, {left}")


def stored(workdir: Path) -> exported.Stages:
    """The latest checkpoint of each stage that there is, as `own.write` takes it."""
    out: exported.Stages = {}
    for stage, items in exported.ITEMS.items():
        checkpoints = Checkpoints(stage_folder(workdir, stage), read_only=True)
        step = checkpoints.latest_step()
        if step is None and out:
            continue
        out[stage] = {
            name: step if name == "step" else checkpoints.restore(name, step=step)
            for name in ("weights", *items)
        }
        out[stage]["config"]["data"]["cache"] = ""  # a path of the machine that trained
        if "adapter" in out[stage]["weights"]:  # what is given away is a plain model
            out[stage]["weights"] = pipeline.stored_model(workdir, stage)[1]
            out[stage]["config"]["adapter"]["rank"] = 0
    return out


def one_file(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    with atomic_write(out) as part:
        exported.write(part, stages, plan)


def diffusers_folder(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    if "diffusion" not in stages:
        raise UserError(
            f"diffusers' layout holds codec and denoiser, and {workdir} has no denoiser"
        )
    model, codec = stages["diffusion"], stages["vqvae"]["weights"]
    config = complete(model["config"])
    if reasons := diffusers.reasons(config.to_dict(), build.process(config), codec):
        raise UserError(
            f"diffusers' layout cannot hold this model: {'; '.join(reasons[:3])}; "
            "--format=safetensors can"
        )
    with atomic_write(out) as part:
        part.mkdir()
        diffusers.write(part, config.to_dict(), widen(codec), widen(model["weights"]))
        load_tokenizer(model["tokenizer"]).save(part / "tokenizer")


def small_workdir(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    half = lambda x: (
        x.astype(np.float16) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x
    )
    with remove_on_error(*(out / stage for stage in stages)):
        for stage, items in stages.items():
            with Checkpoints(stage_folder(out, stage), keep=1) as made:
                kept = {name: value for name, value in items.items() if name != "step"}
                made.save(
                    items["step"],
                    kept | {"weights": jax.tree.map(half, items["weights"])},
                    wait=True,
                )
            if (metrics := workdir / stage / METRICS).exists():  # converted models have none
                with atomic_write(out / stage / METRICS) as part:
                    part.write_bytes(metrics.read_bytes())
        if plan:
            pipeline.write_plan(out, plan)


def run() -> None:
    runner.run(main)
