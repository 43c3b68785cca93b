"""The flags that say which model of a workdir is loaded, for every command that draws."""

from typing import Any

from absl import flags

from vqd_jax.core.errors import UserError

_STAGE = flags.DEFINE_enum(
    "stage",
    None,
    ["diffusion", "autoregressive"],
    "Which model of a workdir that has both; diffusion by default.",
)
_PLAN = flags.DEFINE_string("plan", None, "A plan.npz by vqd plan, instead of the workdir's own.")
_ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "An adapter.safetensors, written by training with --config.adapter.rank, for the model in "
    "the workdir it began with.",
)
_ADAPTER_SCALE = flags.DEFINE_float(
    "adapter_scale", 1.0, "How many times the adapter counts; 0 is not at all."
)


def loading() -> dict[str, Any]:
    """What the flags ask for, as keywords of `pipeline.load`."""
    if _ADAPTER_SCALE.value != 1 and not _ADAPTER.value:
        raise UserError("--adapter_scale needs an adapter: give it with --adapter")
    given = {flag.name: flag.value for flag in (_PLAN, _STAGE, _ADAPTER) if flag.value}
    return given | ({"adapter_scale": _ADAPTER_SCALE.value} if _ADAPTER.value else {})
