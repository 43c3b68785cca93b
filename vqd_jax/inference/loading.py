"""What inference reads from a workdir: the weights of its stages and the measurement of a plan."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages.lora import Adapter


def token_stage(workdir: str | os.PathLike, wanted: str | None = None) -> str | None:
    """The name of the stage over tokens in a workdir: "diffusion" if it has both, None without any.
    UserError if the `wanted` one is missing.
    """
    folder = Workdir(Path(workdir))
    found = [
        name
        for name in build.TOKEN_STAGES
        if Checkpoints(folder.checkpoints(name), read_only=True).latest_step() is not None
    ]
    if wanted and wanted not in found:
        others = f", only {found[0]}" if found else ""
        raise UserError(f"the workdir {workdir} has no stage {wanted}{others}")
    return wanted or next(iter(found), None)


def stored_model(workdir: str | os.PathLike, stage: str) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, weights) of a stage over tokens; an adapter trained there is merged into the
    denoiser.
    """
    stored, weights = stored_items(workdir, stage, "config", "weights")
    config = complete(stored)
    if adapter := weights.pop("adapter", None):
        merged = Adapter(**config.adapter).merged(weights["denoiser"], adapter)
        weights["denoiser"] = jax.device_get(merged)
    return config, weights


def stored_items(workdir: str | os.PathLike, stage: str, *items: str) -> list[Any]:
    """Items of the latest checkpoint of a stage, arrays in float32."""
    folder = Workdir(Path(workdir)).checkpoints(stage)
    checkpoints = Checkpoints(folder, read_only=True)
    return [widen(checkpoints.restore(item)) for item in items]


def write_plan(workdir: str | os.PathLike, entropy: dict[str, np.ndarray]) -> None:
    """Stores the cross-entropies of `plan.measure` in the workdir."""
    path = Workdir(Path(workdir)).plan
    with atomic_write(path, "the plan") as temporary, temporary.open("wb") as file:
        np.savez(file, **entropy)


def read_plan(
    workdir: str | os.PathLike, plan: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """The cross-entropies in the file `plan`, by default in the workdir's, which may be missing."""
    path = Path(plan) if plan else Workdir(Path(workdir)).plan
    if plan and not path.is_file():
        raise UserError(f"there is no plan {path}: make one with vqd plan")
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            return dict(stored)
    except Exception as error:  # damaged archives raise nearly anything
        raise UserError(
            f"the plan {path} is damaged ({type(error).__name__}): delete it or make it again with "
            "vqd plan"
        ) from error
