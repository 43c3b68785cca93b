"""The flags that say how to sample, for every command that does; and `loading`, which model."""

import ast
from typing import Any

from absl import flags

from vqd_jax.cli.loading_flags import loading as loading
from vqd_jax.core.errors import UserError

_FLAGS = (
    flags.DEFINE_enum(
        "sampler",
        None,
        [
            "ancestral",
            "counts",
            "remask",
            "released_fast",
            "prior_rule",
            "autoregressive",
            "previous",
        ],
        "How tokens are drawn; the model's own setting by default.",
    ),
    flags.DEFINE_integer("calls", None, "Network calls; the model's own setting by default."),
    flags.DEFINE_float(
        "guidance", None, "Classifier-free guidance scale w; 1 is none (the paper's s is w - 1)."
    ),
    flags.DEFINE_enum(
        "null",
        None,
        ["learned", "empty"],
        "What guidance leads away from without a negative prompt.",
    ),
    flags.DEFINE_bool("ramp", None, "Let the guidance grow as tokens appear."),
    flags.DEFINE_float(
        "guidance_below",
        None,
        "Guide only while at most this share of the tokens is masked: saves time.",
    ),
    flags.DEFINE_float("temperature", None, "Below 1: nearer to the most likely tokens."),
    flags.DEFINE_float(
        "top_p", None, "Draw from the smallest set of tokens with this mass; 1 is all."
    ),
    flags.DEFINE_integer("top_k", None, "Draw from the k likeliest tokens; 0 is all."),
)
_OPTION = flags.DEFINE_multi_string(
    "option",
    [],
    "NAME=VALUE of the sampler, such as order=halton, counts=planned, polish=4, "
    "eta=0.05 or rule=1; may be repeated.",
)


def settings() -> dict[str, Any]:
    """What the flags ask for, as keywords of `TextToImage`."""
    out = {flag.name: flag.value for flag in _FLAGS if flag.value is not None}
    for option in _OPTION.value:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option takes NAME=VALUE, such as order=halton, got {option!r}")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out
