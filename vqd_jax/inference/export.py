"""A trained model in a form to share (`vqd export`): one file, a diffusers folder, or a small
workdir.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqd_jax.config import build
from vqd_jax.config.compatibility import without_local_paths
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, remove_on_error
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.inference import loading
from vqd_jax.models.weights import diffusers, exported
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.workdir import Workdir

ENDINGS = {"safetensors": ".safetensors", "diffusers": "-diffusers", "workdir": "-small"}
Plan = dict[str, np.ndarray]


def export(workdir: Path, form: str, out: Path | None = None, checkpoint: str | None = None) -> str:
    """Writes the model of a workdir in one of the forms of ENDINGS, to `out` or beside the workdir,
    and returns a line about it; `checkpoint` is that of `pipeline.load`. UserError if `out` exists.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}")
    named = workdir if workdir.name.strip(".") else workdir.resolve()
    out = out or Path(f"{named}{ENDINGS[form]}")
    if form == "safetensors" and out.suffix != ".safetensors":
        raise UserError(f"the name of the file must end in .safetensors, got --out={out}")
    without_model = form == "workdir" and out.is_dir() and not any(out.glob("*/*"))
    if os.path.lexists(out) and not without_model:  # the folder may have a README already
        raise UserError(f"{out} exists already; choose another --out")
    used = checkpoints_of(workdir, checkpoint)
    stages = stored(workdir, used)
    plan = loading.read_plan(workdir) if "diffusion" in stages else {}
    write = {"safetensors": one_file, "diffusers": diffusers_folder, "workdir": small_workdir}
    write[form](workdir, out, stages, plan)
    if form == "workdir":
        mark_best(out, used)
    size = sum(f.stat().st_size for f in [out, *out.rglob("*")] if f.is_file())
    networks = [name for name in stages if name != "vqvae"]
    models = "codec and " + " and ".join(networks) if networks else "a codec alone"
    planned = "and the plan"
    if not plan:
        planned = "no plan, as the workdir has none"
    elif form == "diffusers":
        planned = "without the plan"
    return f"{out}: {size / 1e6:.1f} MB, {models}, {planned} ({'; '.join(map(str, used.values()))})"


def checkpoints_of(workdir: Path, checkpoint: str | None) -> dict[str, loading.StageCheckpoint]:
    """The checkpoint of each stage in the workdir; `checkpoint` is for those over tokens, or for a
    codec alone.
    """
    trained = [
        stage
        for stage in exported.ITEMS
        if Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True).steps()
    ]
    alone = trained == ["vqvae"]
    return {
        stage: loading.chosen_checkpoint(
            workdir, stage, checkpoint if alone or stage != "vqvae" else None
        )
        for stage in dict.fromkeys(["vqvae", *trained])
    }


def stored(workdir: Path, used: dict[str, loading.StageCheckpoint]) -> exported.Stages:
    """The checkpoint of each stage, as `exported.write` takes it, with an adapter merged into the
    weights.
    """
    out: exported.Stages = {}
    for stage, chosen in used.items():
        checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
        step = chosen.step
        out[stage] = {
            name: step if name == "step" else checkpoints.restore(name, step=step)
            for name in ("weights", *exported.ITEMS[stage])
        }
        out[stage]["config"] = without_local_paths(out[stage]["config"])
        if "adapter" in out[stage]["weights"]:
            out[stage]["weights"] = loading.stored_model(workdir, stage, step)[1]
            out[stage]["config"]["adapter"]["rank"] = 0
    return out


def mark_best(out: Path, used: dict[str, loading.StageCheckpoint]) -> None:
    """Notes in a small workdir which of its checkpoints are the best of their training."""
    for stage, chosen in used.items():
        if chosen.best:
            with Checkpoints(Workdir(out).checkpoints(stage), keep=1) as checkpoints:
                checkpoints.mark_best(chosen.best)


def one_file(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    """A .safetensors file with all arrays, configs and the tokenizer."""
    with atomic_write(out) as part:
        exported.write(part, stages, plan)


def diffusers_folder(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    """A folder that diffusers' VQDiffusionPipeline loads."""
    if "diffusion" not in stages:
        raise UserError(
            f"diffusers' layout holds codec and denoiser, and {workdir} has no denoiser"
        )
    model, codec = stages["diffusion"], stages["vqvae"]["weights"]
    config = complete(model["config"])
    if reasons := diffusers.unsupported(config.to_dict(), build.process(config), codec):
        raise UserError(
            f"diffusers' layout cannot hold this model: {'; '.join(reasons[:3])}; "
            "--format=safetensors can"
        )
    with atomic_write(out) as part:
        part.mkdir()
        diffusers.write(part, config.to_dict(), widen(codec), widen(model["weights"]))
        tokenizer: Any = load_tokenizer(model["tokenizer"])  # CLIP's, or the layout does not fit
        tokenizer.save(part / "tokenizer")


def small_workdir(workdir: Path, out: Path, stages: exported.Stages, plan: Plan) -> None:
    """A workdir with what sampling and evaluation need, in half precision, and the metrics."""
    half = lambda x: (
        x.astype(np.float16) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x
    )
    source, target = Workdir(workdir), Workdir(out)
    with remove_on_error(*(target.stage(stage).path for stage in stages)):
        for stage, items in stages.items():
            kept = {name: value for name, value in items.items() if name != "step"}
            kept["weights"] = jax.tree.map(half, items["weights"])
            with Checkpoints(target.checkpoints(stage), keep=1) as checkpoints:
                checkpoints.save(items["step"], kept, wait=True)
            metrics = source.stage(stage).metrics
            if metrics.exists():  # converted models have none
                with atomic_write(target.stage(stage).metrics) as part:
                    part.write_bytes(metrics.read_bytes())
        if plan:
            loading.write_plan(out, plan)
        if source.captions.is_file():
            with atomic_write(target.captions) as part:
                part.write_bytes(source.captions.read_bytes())
