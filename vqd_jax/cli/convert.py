"""Make a workdir of published weights or of an exported file.

  vqd convert SOURCE --workdir=DIR

SOURCE is a checkpoint of the official VQ-Diffusion code, a codec of taming-transformers, a folder
or Hugging Face name in diffusers' layout (microsoft/vq-diffusion-ithq; also its cache folder), or a
file by `vqd export`.
The workdir works with `vqd sample`, `vqd evaluate` and fine-tuning (`--config.init_from=DIR`).
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.core.errors import UserError

ARGUMENTS = ("SOURCE",)
EXTRA = ("yaml", "remap", "codec", "tokenizer", "heads", "image_size")


def define_flags(options: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "workdir to make", flag_values=options)
    flags.DEFINE_string(
        "yaml",
        None,
        "config file of an official checkpoint, for settings that its weights do not show",
        flag_values=options,
    )
    flags.DEFINE_string(
        "remap",
        None,
        "the codec's remap file, such as taming_vqvae_2887.pt: the token of each code",
        flag_values=options,
    )
    flags.DEFINE_string(
        "codec", None, "file of the codec, instead of the one inside SOURCE", flag_values=options
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "CLIP's vocabulary: a folder or Hugging Face name with vocab.json and merges.txt, or "
        "OpenAI's bpe_simple_vocab_16e6.txt.gz",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "heads",
        None,
        "attention heads, if neither SOURCE nor --yaml says it; 16 in all released models",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "image_size",
        256,
        "side of the images in pixels, if neither SOURCE nor --yaml says it",
        flag_values=options,
    )
    flags.DEFINE_boolean(
        "allow_nan", False, "convert weights with NaN or infinite values", flag_values=options
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    if not arguments or not options.workdir:
        raise UserError(
            "give the weights and the workdir to make: vqd convert SOURCE --workdir=DIR"
        )

    from vqd_jax.inference import convert
    from vqd_jax.models.weights.exported import is_exported

    (source,) = arguments
    given = [f"--{name}" for name in EXTRA if options[name].present]
    if given and is_exported(Path(source).expanduser()):
        raise UserError(f"{source} holds a complete model: leave out {' and '.join(given)}")
    extra = convert.Extra(
        **{name: options[name].value for name in EXTRA}, allow_nan=options.allow_nan
    )
    if "://" in options.workdir:
        raise UserError(f"vqd convert makes a local folder, got {options.workdir}: copy it then")
    convert.convert(source, Path(options.workdir), extra)
    print(f"{options.workdir}: sample from it with vqd sample --workdir={options.workdir}")
