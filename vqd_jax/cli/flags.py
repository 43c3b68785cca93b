"""Flags that several commands share, and what they ask for as keyword arguments."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vqd_jax.core.errors import UserError
from vqd_jax.core.shipped import MODEL

if TYPE_CHECKING:
    from vqd_jax.inference.pipeline import TextToImage

SAMPLERS = (
    "ancestral",
    "counts",
    "remask",
    "released_fast",
    "prior_rule",
    "autoregressive",
)
SAMPLING = (
    "sampler",
    "calls",
    "guidance",
    "null",
    "ramp",
    "guidance_below",
    "temperature",
    "top_p",
    "top_k",
)


def define_model_flag(options: flags.FlagValues) -> None:
    """For commands that only draw."""
    flags.DEFINE_string(
        "workdir",
        MODEL,
        "workdir of a trained model; by default of the one that comes with vqd_jax",
        flag_values=options,
    )


def define_workdir_flag(options: flags.FlagValues, note: str) -> None:
    flags.DEFINE_string(
        "workdir", None, f"workdir of a trained model, such as {MODEL}; {note}", flag_values=options
    )


def define_config_flag(options: flags.FlagValues) -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "name of a config, such as emoji, or a file of your own, with :VARIANT if it has any; "
        "--config.SECTION.KEY=VALUE changes a key, and --config=NAME --help lists them",
        lock_config=True,
        flag_values=options,
    )


def define_cache_flag(options: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "cache",
        None,
        "folder for prepared data sets and tokens; ~/.cache/vqd_jax/data by default",
        flag_values=options,
    )


def define_prompt_flags(options: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "prompt",
        [],
        'text prompt, may be repeated; "a cat AND a dog :0.5" blends two',
        flag_values=options,
    )
    flags.DEFINE_multi_string(
        "label",
        [],
        "class models: number or name of the class, may be repeated",
        flag_values=options,
    )
    flags.DEFINE_string(
        "negative_prompt",
        "",
        "what the images should not show; replaces the null condition in guidance",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "random seed; the same seed, prompts and settings give the same images",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=options,
    )


def define_checkpoint_flag(options: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "checkpoint",
        None,
        "best, last, or a step: which checkpoint of the model is used; by default the best, if "
        "training keeps one (--config.diffusion_train.best), and else the last",
        flag_values=options,
    )


def checkpoints_of(model: "TextToImage") -> str:
    """From which checkpoints the model was loaded."""
    return f"model: {'; '.join(map(str, model.checkpoints))}"


def define_loading_flags(options: flags.FlagValues, *, adapters: bool = False) -> None:
    """Which model of a workdir is loaded. With `adapters`, --adapter may be repeated."""
    flags.DEFINE_enum(
        "stage",
        None,
        ["diffusion", "autoregressive"],
        "which model of a workdir that has both; diffusion by default",
        flag_values=options,
    )
    define_checkpoint_flag(options)
    flags.DEFINE_string(
        "plan",
        None,
        "a plan.npz written by vqd plan, instead of the workdir's own",
        flag_values=options,
    )
    (flags.DEFINE_multi_string if adapters else flags.DEFINE_string)(
        "adapter",
        None,
        "a low-rank adapter for the model it was trained on: the folder adapter that training with "
        "--config.adapter.rank writes, another in the layout of PEFT, or hf://OWNER/NAME"
        + "; may be repeated"
        * adapters,
        flag_values=options,
    )
    flags.DEFINE_float(
        "adapter_scale",
        1.0,
        "factor on the adapter's weights; 0 switches it off",
        flag_values=options,
    )


def loading(options: flags.FlagValues) -> dict[str, Any]:
    """The loading flags as keywords of `pipeline.load`."""
    if options.adapter_scale != 1 and not options.adapter:
        raise UserError("--adapter_scale needs an adapter: give it with --adapter")
    out = {name: options[name].value for name in ("plan", "stage", "checkpoint", "adapter")}
    out = {name: value for name, value in out.items() if value}
    return out | ({"adapter_scale": options.adapter_scale} if options.adapter else {})


def define_sampling_flags(options: flags.FlagValues) -> None:
    """How tokens are sampled. Without a flag, the setting of the model's config holds."""
    flags.DEFINE_enum(
        "sampler",
        None,
        SAMPLERS,
        "sampling algorithm (docs/samplers.md)",
        flag_values=options,
    )
    flags.DEFINE_integer("calls", None, "network calls (steps)", flag_values=options)
    flags.DEFINE_float(
        "guidance",
        None,
        "classifier-free guidance scale w; 1 is no guidance (the paper's s is w - 1)",
        flag_values=options,
    )
    flags.DEFINE_enum(
        "null",
        None,
        ["learned", "empty"],
        "null condition of guidance: the learned embedding or the empty prompt",
        flag_values=options,
    )
    flags.DEFINE_bool("ramp", None, "increase guidance as tokens are revealed", flag_values=options)
    flags.DEFINE_float(
        "guidance_below",
        None,
        "apply guidance only while at most this fraction of the tokens is masked, which saves time",
        flag_values=options,
    )
    flags.DEFINE_float(
        "temperature",
        None,
        "softmax temperature; below 1 favours likely tokens",
        flag_values=options,
    )
    flags.DEFINE_float(
        "top_p",
        None,
        "sample from the smallest set of tokens with this probability mass; 1 is all tokens",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "top_k", None, "sample from the k most likely tokens; 0 is all tokens", flag_values=options
    )
    flags.DEFINE_multi_string(
        "option",
        [],
        "NAME=VALUE, an option of the sampler such as order=halton, counts=planned, polish=4, "
        "eta=0.05 or rule=1; may be repeated",
        flag_values=options,
    )


def sampling(options: flags.FlagValues) -> dict[str, Any]:
    """The sampling flags that were given, as keywords of `TextToImage`."""

    from vqd_jax.config.defaults import sampler_options

    given = {name: options[name].value for name in SAMPLING}
    out = {name: value for name, value in given.items() if value is not None}
    for option in options.option:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option takes NAME=VALUE, such as order=halton, got {option!r}")
        if name not in (known := sampler_options()):
            raise UserError(f"no sampler has the option {name!r:.80}; known are {', '.join(known)}")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def check_output_files(options: flags.FlagValues, *names: str) -> None:
    """UserError, before anything is computed, if one of these flags names a folder."""
    for name in names:
        if options[name].value and Path(options[name].value).is_dir():
            raise UserError(f"--{name}={options[name].value} is a folder: name a file")
