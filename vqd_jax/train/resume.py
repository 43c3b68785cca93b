"""Going on with a model that is there: which settings come from its checkpoint, and which must be
the same.
"""

import json
from pathlib import Path
from typing import Any

from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.inference import pipeline
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.workdir import stage_folder

CODEC = ("vqvae", "codebook")  # sections
MODEL = (*CODEC, "process", "condition", "denoiser", "text", "learned_text", "clip_text")
FREE = {
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
}  # weights do not depend on them


def with_model_of(workdir: str | Path, config: Any) -> Any:
    """The config with the model of another workdir, to be trained on without its codec."""
    stage = pipeline.token_stage(workdir) or "diffusion"
    stored = complete(Checkpoints(stage_folder(workdir, stage), read_only=True).restore("config"))
    own = config.to_dict() | {name: stored[name].to_dict() for name in MODEL} | {"stages": (stage,)}
    return complete(own | {"data": own["data"] | {"image_size": stored.data.image_size}})


def check_same_model(stage: str, checkpoints: Checkpoints, config: Any) -> None:
    """UserError if there are checkpoints, and they are of a model with other settings than the
    config's.
    """
    if not checkpoints.has("config"):
        return
    stored = complete(checkpoints.restore("config"))
    keys = [
        ("data", "image_size"),
        *((name, key) for name in (CODEC if stage == "vqvae" else MODEL) for key in config[name]),
    ]
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
            f"{'; '.join(differ[:5])}{more}; choose another --workdir "
            "or those settings"
        )
