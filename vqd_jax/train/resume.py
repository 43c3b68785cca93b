"""Training that goes on, or starts from an existing model: which settings come from its checkpoint,
which must be the same, and the first parameters.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.core.shapes import Params
from vqd_jax.inference import loading
from vqd_jax.models.weights.clip import read_clip
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.models.weights.released import text_weights
from vqd_jax.runtime.checkpoint import Checkpoints, fit
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.train.guard import TrainingRecord

CODEC = ("vqvae", "codebook")  # sections of the config
MODEL = (*CODEC, "process", "condition", "denoiser", "text", "learned_text", "clip_text")
FREE = {  # keys of these sections on which weights do not depend
    "vqvae.dtype",
    "codebook.decay",
    "codebook.smoothing",
    "codebook.restart_every",
    "codebook.restart_below",
    "denoiser.init_std",
    "denoiser.dropout",
    "denoiser.attention",
    "denoiser.dtype",
    "denoiser.remat",
    "denoiser.scan",
    "clip_text.folder",
}
EXAMPLES = ("seed", "data.source", "data.transform", "data.colour", "data.drop_words")
# Sections without effect on a codec, and on a stage that reads its tokens
TOKEN_SECTIONS = (
    *(name for name in MODEL if name not in CODEC),
    *("adapter", "diffusion_loss", "diffusion_optim", "diffusion_train"),
    *("sampling", "counts", "remask", "prior_rule"),
)
CODEC_SECTIONS = ("discriminator", "vqvae_loss", "vqvae_optim", "vqvae_train")


def with_model_of(workdir: str | Path, config: ConfigDict) -> ConfigDict:
    """The config with the model of another workdir, whose token stage is to be trained further; of
    a workdir with a codec alone, with that codec, over which the config's stage is to be trained.
    """
    stage = loading.token_stage(workdir)
    folder = Workdir(workdir).checkpoints(stage or "vqvae")
    stored = complete(Checkpoints(folder, read_only=True).restore("config"))
    taken = MODEL if stage else CODEC
    values = config.to_dict() | {name: stored[name].to_dict() for name in taken}
    own = [name for name in config.stages if name != "vqvae"] or ["diffusion"]
    values["stages"] = (stage,) if stage else tuple(own)
    values["data"] = values["data"] | {"image_size": stored.data.image_size}
    return complete(values)


def check_same_model(stage: str, checkpoints: Checkpoints, config: ConfigDict) -> None:
    """UserError if there are checkpoints of a model with other settings than the config's."""
    sections = CODEC if stage == "vqvae" else MODEL
    changed = {
        key: values
        for key, values in changes(checkpoints, config).items()
        if (key == "data.image_size" or key.split(".")[0] in sections) and key not in FREE
    }
    if changed:
        raise UserError(
            f"the model in {checkpoints.folder} has other settings: {_told(changed)}; choose "
            "another --workdir or those settings"
        )


def check_restart(
    stage: str, checkpoints: Checkpoints, config: ConfigDict, fingerprint: str, allowed: bool
) -> None:
    """Prints what differs from the config of a run that is to go on. UserError, unless it is
    `allowed`, if the examples would be others: `fingerprint` is that of the data set.
    """
    if not checkpoints.has("record"):
        return  # converted weights, which have seen no examples of ours
    irrelevant = TOKEN_SECTIONS if stage == "vqvae" else CODEC_SECTIONS
    changed = changes(checkpoints, config)
    examples = {key: changed.pop(key) for key in [*changed] if decides_examples(key, config)}
    others = [_told(examples)] if examples else []
    if not examples and checkpoints.has("data"):
        stored = checkpoints.restore("data")["fingerprint"]
        others = ["images or captions have changed"] if stored != fingerprint else []
    if others and not allowed:
        raise UserError(
            f"the run in {checkpoints.folder} has seen other examples than this one would: "
            f"{others[0]}; choose another --workdir, or go on nevertheless with --allow_changes"
        )
    for key, (before, now) in (changed | examples).items():
        if key.split(".")[0] not in irrelevant:
            print(f"{stage}: {key} was {before!r} so far and is {now!r} now", flush=True)


def decides_examples(key: str, config: ConfigDict) -> bool:
    """Whether a key of the config decides which examples training sees, and in which order."""
    section, _, name = key.partition(".")
    if section == config.data.source:
        return name not in ("path", "captions")  # files may move
    return key in EXAMPLES or section in ("crop", "mixture")


def changes(checkpoints: Checkpoints, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """By key, the values that differ: (stored with the latest checkpoint, in the config)."""
    if not checkpoints.has("config") or not (stored := checkpoints.restore("config")):
        return {}
    before, now = _flat(complete(stored)), _flat(config)
    return {key: (before[key], now[key]) for key in now if before[key] != now[key]}


def _flat(config: ConfigDict) -> dict[str, Any]:
    """The values of all keys, with lists for tuples."""
    flat = {}
    for section, values in json.loads(config.to_json()).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


def _told(changed: dict[str, tuple[Any, Any]]) -> str:
    """The first five of the changes."""
    told = [f"{key} is {there!r} there and {here!r} here" for key, (there, here) in changed.items()]
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    return "; ".join(told[:5]) + more


def stored_record(stage: str, checkpoints: Checkpoints, batch_size: int) -> TrainingRecord:
    """The record of the latest checkpoint, for going on with batches of this size; a new one if
    there is none.
    """
    step = checkpoints.latest_step()
    if step is None or not checkpoints.has("record"):
        return TrainingRecord(Pace(batch_size))
    before = batch_size
    if checkpoints.has("config") and (stored := checkpoints.restore("config")):
        before = complete(stored)[f"{section_of(stage)}_train"].batch_size
    record = TrainingRecord.from_json(checkpoints.restore("record"), before)
    record.change_batch_size(batch_size, step)
    return record


def section_of(stage: str) -> str:
    """The prefix of the sections of a config with the training and optimizer of a stage."""
    return "vqvae" if stage == "vqvae" else "diffusion"


def copy_codec(origin: Workdir, workdir: Workdir) -> None:
    """Copies the codec of another workdir, its best or last one: a workdir holds all that sampling
    needs.
    """
    stored = Checkpoints(origin.checkpoints("vqvae"), read_only=True)
    step = stored.choose()
    items = {name: stored.restore(name, step=step) for name in ("weights", "config")}
    with Checkpoints(workdir.checkpoints("vqvae"), keep=1) as checkpoints:
        checkpoints.save(step, items, wait=True)


def initial_params(config: ConfigDict, stage: str, params: Params) -> Params:
    """The parameters that a token stage starts from, given fresh ones: those in `init_from` if it
    has such a stage, else fresh ones with the text tower of CLIP where the config names it.
    """
    if config.init_from and loading.token_stage(config.init_from):
        _, stored = loading.stored_model(config.init_from, stage)
        fresh = {"adapter": params["adapter"]} if "adapter" in params else {}
        merged = {"conditioner": {}} | stored | fresh
        return fit(merged, params, f"the model in {config.init_from}")
    if config.condition.kind == "text" and config.text.encoder == "clip":
        folder = config.clip_text.folder
        encoder = text_weights(
            read_clip(local_folder(folder)),
            params["conditioner"]["encoder"],
            f"the CLIP weights in {folder}",
        )
        return params | {"conditioner": params["conditioner"] | {"encoder": encoder}}
    return params
