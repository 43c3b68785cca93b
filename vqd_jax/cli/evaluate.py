"""Measure a model or a folder of images by a named protocol.

  vqd evaluate --workdir=DIR [--protocol=NAME]
  vqd evaluate --pictures=DIR_OR_NPZ --reference=DIR_OR_NPZ --protocol=NAME

The first generates the images of a model and measures them, the second measures a folder of images,
whatever made them. Writes a JSON file, a page of images and plots. The images are generated in
batches into a folder; an interrupted run resumes from there.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli.flags import (
    define_cache_flag,
    define_loading_flags,
    define_sampling_flags,
    define_workdir_flag,
    loading,
    sampling,
)
from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError
from vqd_jax.eval.protocols import PROTOCOLS

AGAIN = "resumes after the images that are there"
CHOICE = ("protocol", "images", "seed", "reference", "data", "cache", "inception", "clip")


def define_flags(options: flags.FlagValues) -> None:
    define_workdir_flag(options, "it is not written to")
    define_cache_flag(options)
    define_loading_flags(options)
    define_sampling_flags(options)
    flags.DEFINE_enum(
        "protocol",
        None,
        [*PROTOCOLS],
        "what is measured, on how many images; by default the protocol that the workdir's config "
        "names",
        flag_values=options,
    )
    flags.DEFINE_string(
        "out",
        None,
        "JSON file to write, with images and plots beside it; results/NAME.json by default, named "
        "after the workdir or folder, and after --protocol and --checkpoint if they are given",
        flag_values=options,
    )
    flags.DEFINE_string(
        "pictures",
        None,
        "folder of the generated images: with --workdir where they go, by default beside the "
        "JSON; without it, the images to measure, or an .npz of them",
        flag_values=options,
    )
    flags.DEFINE_string(
        "reference",
        None,
        "real images to compare with instead of the data set's: a folder, or an .npz of images "
        "(arr_0), of their statistics (mu and sigma) or of both",
        flag_values=options,
    )
    flags.DEFINE_string(
        "data",
        None,
        "SOURCE:DIR of the data set, such as cub:data/CUB-200, if it is not where the config says",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "images",
        None,
        "images per split, instead of the protocol's number; the bound takes at most as many",
        lower_bound=2,
        flag_values=options,
    )
    flags.DEFINE_integer(
        "seed",
        None,
        "random seed, instead of the protocol's",
        lower_bound=0,
        flag_values=options,
    )
    flags.DEFINE_integer("batch", 64, "images per device", lower_bound=1, flag_values=options)
    flags.DEFINE_string(
        "inception",
        None,
        "weights of InceptionV3 as published by pytorch-fid",
        flag_values=options,
    )
    flags.DEFINE_string(
        "clip",
        None,
        "weights of CLIP, instead of the protocol's: a folder or a Hugging Face name",
        flag_values=options,
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    workdir = options.workdir
    if not workdir and not (options.pictures and options.reference and options.protocol):
        raise UserError(
            "--workdir is missing; for a first try take --workdir=pretrained/emoji64, or name "
            "folders with --pictures and --reference, and a --protocol"
        )
    given = sampling(options) | loading(options)
    if given and not workdir:
        raise UserError(f"--{next(iter(given))} is for the model in a --workdir, and there is none")
    out = _out(options)

    from vqd_jax.core.checksums import seal
    from vqd_jax.core.files import atomic_write
    from vqd_jax.core.image_grid import save_png
    from vqd_jax.eval import page, run

    choice = run.Choice(**{name: options[name].value for name in CHOICE})
    if workdir:
        print(f"writing {out} and {out.with_suffix('.png')}", flush=True)
        result, scored = run.evaluate_model(
            as_path(workdir),
            choice,
            folder=Path(options.pictures) if options.pictures else out.with_suffix(""),
            batch=options.batch,
            loading=loading(options),
            sampling=sampling(options),
        )
    else:
        result, scored = run.evaluate_folder(Path(options.pictures), choice)
    with atomic_write(out) as part:
        part.write_text(seal(json.dumps(result, indent=1)) + "\n")
    if scored:
        save_png(out.with_suffix(".png"), *page.page(scored, result["protocol"]["seed"]))
        plots = out.with_name(f"{out.stem}-plots.png")
        try:
            page.plot(scored, plots)
            print(f"plots: {plots}")
        except ImportError:
            print('there are no plots without matplotlib: pip install "vqd_jax[plots]"')
    print(page.table(result, [*scored]))
    if meanings := {part.similarity.meaning for part in scored.values() if part.similarity}:
        print(f"best and worst in {out.with_suffix('.png')} are by {meanings.pop()}")


def _out(options: flags.FlagValues) -> Path:
    """The JSON file to write."""
    name = Path(options.workdir or options.pictures).resolve().name.removesuffix(".npz")
    for chosen in (options.protocol, options.checkpoint):
        if chosen:
            name += f"-{chosen}"
    out = Path(options.out) if options.out else Path("results") / f"{name}.json"
    if out.suffix != ".json":
        raise UserError(f"--out is a JSON file, such as results/mine.json, got {out}")
    return out
