"""Write a trained model as one file, for diffusers, or small.

  vqd export --workdir=runs/emoji [--format=safetensors] [--out=PATH]

safetensors is one file with all arrays, configs and the tokenizer; `vqd convert` makes a workdir of
it. diffusers is a folder for its VQDiffusionPipeline, possible for models with the released
architecture. workdir is a small workdir: what sampling and evaluation need in half precision, and
the metrics.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli.flags import define_checkpoint_flag
from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError

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


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    if not options.workdir:
        raise UserError("--workdir is missing: a trained workdir to export")

    from vqd_jax.inference import export

    out = Path(options.out) if options.out else None
    print(export.export(as_path(options.workdir), options.format, out, options.checkpoint))
