"""Write a trained model as one file, for diffusers, or small.

  vqd export --workdir=runs/emoji [--format=safetensors] [--out=PATH]
  vqd export --workdir=runs/emoji --push=OWNER/NAME [--results=FILE.json] [--license=NAME]

safetensors is one file with all arrays, configs and the tokenizer; `vqd convert` makes a workdir of
it. diffusers is a folder for its VQDiffusionPipeline, possible for models with the released
architecture. workdir is a small workdir: what sampling and evaluation need in half precision, and
the metrics. --push uploads that file to the Hugging Face hub, with a model card made of the
workdir's README.md and the results of `vqd evaluate`; vqd_jax.load("hf://OWNER/NAME") loads it.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli.flags import define_checkpoint_flag
from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.hub import REPOSITORY

FORMATS = ("safetensors", "diffusers", "workdir")


def define_flags(options: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "trained or converted workdir; nothing in it is changed",
        flag_values=options,
    )
    define_checkpoint_flag(options)
    flags.DEFINE_string(
        "out",
        None,
        "file or folder to write, which must not exist; by default beside the workdir: "
        "WORKDIR.safetensors, WORKDIR-diffusers or WORKDIR-small",
        flag_values=options,
    )
    flags.DEFINE_enum("format", FORMATS[0], FORMATS, "what to write", flag_values=options)
    flags.DEFINE_string(
        "push", None, "OWNER/NAME of a repository of the Hugging Face hub", flag_values=options
    )
    flags.DEFINE_string(
        "results", None, "with --push: JSON file of vqd evaluate, for the card", flag_values=options
    )
    flags.DEFINE_string(
        "license",
        "other",
        "with --push: licence of the weights, as the hub names it, such as cc-by-sa-4.0",
        flag_values=options,
    )
    flags.DEFINE_boolean(
        "private", False, "with --push: make a new repository private", flag_values=options
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    if not options.workdir:
        raise UserError("--workdir is missing: a trained workdir to export")

    for name in ("results", "license", "private"):
        if options[name].present and not options.push:
            raise UserError(f"--{name} needs a repository: give it with --push")
    print(_push(options) if options.push else _write(options))


def _write(options: flags.FlagValues) -> str:
    from vqd_jax.inference import export

    out = Path(options.out) if options.out else None
    return export.export(as_path(options.workdir), options.format, out, options.checkpoint)


def _push(options: flags.FlagValues) -> str:
    if options.out or options.format != FORMATS[0]:
        raise UserError("--push uploads one safetensors file: leave out --out and --format")
    if not REPOSITORY.fullmatch(options.push):
        raise UserError(f"--push takes OWNER/NAME, got {options.push!r}")

    from vqd_jax.inference.push import push

    return push(
        as_path(options.workdir),
        options.push,
        checkpoint=options.checkpoint,
        results=options.results,
        license_name=options.license,
        private=options.private,
    )
