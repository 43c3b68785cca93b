"""What inference reads from a workdir: the weights of its stages and the measurement of a plan."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.core.shapes import Params
from vqd_jax.runtime.checkpoint import Best, Checkpoints, widen
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.token_stage import TokenStage

HUB_FILE = "vqd_jax.safetensors"  # an exported model in a repository of the Hugging Face hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCheckpoint:
    """The checkpoint that was loaded of a stage.

    Attributes:
      kind: "best", "last", or "step" for another one.
      best: by which measure it is the best; None if it is another one.
    """

    stage: str
    step: int
    kind: str
    best: Best | None = None

    def to_json(self) -> dict[str, Any]:
        """The step and the kind, and of a best one the measure and its value."""
        chosen = dataclasses.asdict(self.best) if self.best else {}
        return {"step": self.step, "kind": self.kind} | chosen

    def __str__(self) -> str:
        last = ", the last" if self.kind == "last" else ""
        return f"{self.stage} {self.best or f'step {self.step}{last}'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What is stored of a model.

    Attributes:
      stage: the name of the stage over tokens; None where only the codec is trained, and then there
        are no weights and no tokenizer.
      tokenizer: as JSON.
      checkpoints: from which it was read.
      plan: as `read_plan`, but of this model.
    """

    config: ConfigDict
    codec_weights: Params
    stage: str | None
    weights: Params | None
    tokenizer: str | None
    checkpoints: tuple[StageCheckpoint, ...]
    plan: Callable[[str | os.PathLike | None, int | None], dict[str, np.ndarray]]


def read_workdir(
    workdir: str | os.PathLike, stage: str | None = None, checkpoint: str | int | None = None
) -> StoredModel:
    """The model in a workdir; for the arguments see `pipeline.load`."""
    name = token_stage(workdir, stage)
    used = [chosen_checkpoint(workdir, "vqvae", None if name else checkpoint)]
    config, codec_weights = stored_items(workdir, "vqvae", "config", "weights", step=used[0].step)
    weights = tokenizer = None
    if name:
        used.append(chosen_checkpoint(workdir, name, checkpoint))
        stored, weights = stored_model(workdir, name, used[1].step)
        (tokenizer,) = stored_items(workdir, name, "tokenizer", step=used[1].step)
    return StoredModel(
        config=stored if name else complete(config),
        codec_weights=codec_weights,
        stage=name,
        weights=weights,
        tokenizer=tokenizer,
        checkpoints=tuple(used),
        plan=functools.partial(read_plan, workdir),
    )


def in_compute_dtype(stage: TokenStage, weights: Params) -> Params:
    """The weights with the network's kernels in the dtype of its products, to which every call
    would otherwise convert them.
    """
    networks = {"denoiser": "denoiser", "autoregressive": "network"}

    def convert(path: jax.tree_util.KeyPath, x: Any) -> Any:
        names = [getattr(entry, "key", None) for entry in path]
        if names[0] not in networks or names[-1] != "kernel":
            return x
        return x.astype(getattr(stage, networks[names[0]]).dtype)

    return jax.tree_util.tree_map_with_path(convert, weights)


def chosen_checkpoint(
    workdir: str | os.PathLike, stage: str, which: str | int | None = None
) -> StageCheckpoint:
    """The checkpoint of a stage that `which` names, see `Checkpoints.choose`."""
    checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
    step, best = checkpoints.choose(which), checkpoints.best()
    if step is None:
        raise UserError(f"there is no finished checkpoint in {checkpoints.folder}, none at all")
    if best and best.step == step:
        return StageCheckpoint(stage=stage, step=step, kind="best", best=best)
    kind = "last" if step == checkpoints.latest_step() else "step"
    return StageCheckpoint(stage=stage, step=step, kind=kind)


def token_stage(workdir: str | os.PathLike, wanted: str | None = None) -> str | None:
    """The name of the stage over tokens in a workdir: "diffusion" if it has both, None without any.
    UserError if the `wanted` one is missing.
    """
    folder = Workdir(workdir)
    found = [
        name
        for name in build.TOKEN_STAGES
        if Checkpoints(folder.checkpoints(name), read_only=True).latest_step() is not None
    ]
    if wanted and wanted not in found:
        others = f", only {found[0]}" if found else ""
        raise UserError(f"the workdir {workdir} has no stage {wanted}{others}")
    return wanted or next(iter(found), None)


def stored_model(
    workdir: str | os.PathLike, stage: str, step: int | None = None
) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, weights) of a stage over tokens; an adapter trained there is merged into the
    denoiser.
    """
    stored, weights = stored_items(workdir, stage, "config", "weights", step=step)
    config = complete(stored)
    if adapter := weights.pop("adapter", None):
        merged = Adapter(**config.adapter).merged(weights["denoiser"], adapter)
        weights["denoiser"] = jax.device_get(merged)
    return config, weights


def stored_items(
    workdir: str | os.PathLike, stage: str, *items: str, step: int | None = None
) -> list[Any]:
    """Items of a checkpoint of a stage, by default the best one or else the last; arrays in
    float32.
    """
    folder = Workdir(workdir).checkpoints(stage)
    checkpoints = Checkpoints(folder, read_only=True)
    step = checkpoints.choose() if step is None else step
    return [widen(checkpoints.restore(item, step=step)) for item in items]


def write_plan(workdir: str | os.PathLike, entropy: dict[str, np.ndarray]) -> None:
    """Stores the cross-entropies of `plan.measure` in the workdir."""
    path = Workdir(workdir).plan
    with atomic_write(path, "the plan") as temporary, temporary.open("wb") as file:
        np.savez(file, **entropy)


def read_plan(
    workdir: str | os.PathLike, plan: str | os.PathLike | None = None, tokens: int | None = None
) -> dict[str, np.ndarray]:
    """The cross-entropies in the file `plan`, by default in the workdir's, which may be missing.
    With `tokens`, UserError if they were measured for images of another number of tokens.
    """
    path = Path(plan) if plan else Workdir(workdir).plan
    if plan and not path.is_file():
        raise UserError(f"there is no plan {path}: make one with vqd plan")
    if not path.exists():
        return {}
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as file, np.load(file) as stored:
            entropy = dict(stored)
    except Exception as error:  # damaged archives raise nearly anything
        raise UserError(
            f"the plan {path} is damaged ({type(error).__name__}): delete it or make it again with "
            "vqd plan"
        ) from error
    for order, values in entropy.items():
        shape, n = values.shape, tokens or max(values.shape, default=0)
        if shape not in ((n,), (n, n)) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise UserError(
                f"the plan {path} does not fit this model: its {order!r} is an array of "
                f"{values.dtype}{list(shape)}, and {n} or {n} x {n} finite numbers are expected: "
                "make it again with vqd plan"
            )
    return entropy
