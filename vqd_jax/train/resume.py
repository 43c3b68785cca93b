"""Training that starts from an existing model: which settings come from its checkpoint, which must
be the same, and the first parameters.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params
from vqd_jax.inference import loading
from vqd_jax.models.weights.clip import read_clip
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.models.weights.released import text_weights
from vqd_jax.runtime.checkpoint import Checkpoints, fit
from vqd_jax.runtime.workdir import Workdir

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


def with_model_of(workdir: str | Path, config: ConfigDict) -> ConfigDict:
    """The config with the model of another workdir, whose token stage is to be trained further."""
    stage = loading.token_stage(workdir) or "diffusion"
    stored = complete(
        Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True).restore("config")
    )
    values = config.to_dict() | {name: stored[name].to_dict() for name in MODEL}
    values["stages"] = (stage,)
    values["data"] = values["data"] | {"image_size": stored.data.image_size}
    return complete(values)


def check_same_model(stage: str, checkpoints: Checkpoints, config: ConfigDict) -> None:
    """UserError if there are checkpoints of a model with other settings than the config's."""
    if not checkpoints.has("config"):
        return
    stored = complete(checkpoints.restore("config"))
    sections = CODEC if stage == "vqvae" else MODEL
    keys = [("data", "image_size"), *((name, key) for name in sections for key in config[name])]
    plain = lambda value: json.loads(json.dumps(value))  # lists for tuples
    differ = [
        f"{name}.{key} is {stored[name][key]!r} there and {config[name][key]!r} here"
        for name, key in keys
        if f"{name}.{key}" not in FREE and plain(stored[name][key]) != plain(config[name][key])
    ]
    if differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UserError(
            f"the model in {checkpoints.folder} has other settings: "
            f"{'; '.join(differ[:5])}{more}; choose another --workdir or those settings"
        )


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
    """The parameters that a token stage starts from, given fresh ones: those in `init_from`, else
    fresh ones with the text tower of CLIP where the config names it.
    """
    if config.init_from:
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
