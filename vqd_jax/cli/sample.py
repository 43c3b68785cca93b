"""Generate images from prompts, or change an image.

  vqd sample --prompt="a red apple" [--prompt=TEXT ...] [--workdir=DIR] [--num=4] [--out=FILE.png]

--prompts_file has a prompt on each line. --out=DIR/ writes each image to a file of its own. With
--init_image an image is changed instead: --mask marks the area to repaint (white), --strength sets
how much changes, --extend paints beyond the borders. A PNG stores its request, and --like=FILE.png
generates the same images again.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vqd_jax.cli.flags import (
    SAMPLING,
    check_output_files,
    checkpoints_of,
    define_loading_flags,
    define_model_flag,
    define_prompt_flags,
    define_sampling_flags,
    loading,
    sampling,
)
from vqd_jax.core.errors import UserError

if TYPE_CHECKING:
    import vqd_jax.inference.pipeline
    import vqd_jax.inference.request
    from vqd_jax.core.image_grid import Images, Sheet

COLUMNS = 8  # images in a row of the sheet at most
TRACED = 16  # steps in the file of --trace at most
STORED = (  # in the file of --like
    *("prompt", "prompts_file", "label", "negative_prompt", "num", "seed", "batch"),
    *("init_image", "mask", "strength", "extend", *SAMPLING, "option"),
)


def define_flags(options: flags.FlagValues) -> None:
    define_model_flag(options)
    define_prompt_flags(options)
    define_loading_flags(options)
    define_sampling_flags(options)
    flags.DEFINE_integer("num", 4, "images per prompt", lower_bound=1, flag_values=options)
    flags.DEFINE_integer("batch", 16, "images per device", lower_bound=1, flag_values=options)
    flags.DEFINE_integer(
        "scale", 3, "enlargement of each image in the file", lower_bound=1, flag_values=options
    )
    flags.DEFINE_string(
        "prompts_file", None, "text file with a prompt on each line", flag_values=options
    )
    flags.DEFINE_string(
        "out",
        "samples.png",
        "file to write (.png, .jpg or .webp), with the images of each prompt in rows; or a folder "
        "with a / at its end, for a file of each image",
        flag_values=options,
    )
    flags.DEFINE_string(
        "trace",
        None,
        f"second PNG to write: one image of each prompt after up to {TRACED} of the steps",
        flag_values=options,
    )
    flags.DEFINE_string(
        "init_image",
        None,
        "image to change; scaled and cropped to the model's square, unless it is larger and --mask "
        "or --extend is given",
        flag_values=options,
    )
    flags.DEFINE_string(
        "mask",
        None,
        "image with the proportions of --init_image, or a square of the model's size; what is "
        "white in it, or drawn on a transparent layer, is repainted",
        flag_values=options,
    )
    flags.DEFINE_float(
        "strength",
        1.0,
        "how much of --init_image is replaced, in (0, 1]; 1 keeps nothing of the repainted area",
        flag_values=options,
    )
    flags.DEFINE_list(
        "extend",
        [],
        "LEFT,TOP,RIGHT,BOTTOM: pixels to add on each side of --init_image",
        flag_values=options,
    )
    flags.DEFINE_string(
        "like",
        None,
        "PNG written by this command or saved from the demo: generate the same images again",
        flag_values=options,
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    one_each = options.out.endswith(("/", os.sep))
    check_output_files(options, *[] if one_each else ["out"], "trace")
    _check_flags(options)

    import numpy as np

    from vqd_jax.core.image_grid import grid, save_picture, save_png
    from vqd_jax.inference import pipeline, request
    from vqd_jax.inference.prompts import check_prompt

    given = [*options.prompt, *options.label, *_lines(options.prompts_file)]
    prompts = [check_prompt(p) for p in given]
    started = time.perf_counter()
    model = pipeline.load(options.workdir, **loading(options))
    print(checkpoints_of(model), flush=True)
    weights = model.digest
    if options.like:
        wanted, only = request.read_file(model, options.like, weights)
    else:
        wanted, only = _request(options, model, prompts), None
    images = request.generate(model, wanted)
    scale = options.scale if options["scale"].present else 1
    single = lambda i: images[i].repeat(scale, axis=0).repeat(scale, axis=1)
    text = lambda i: request.metadata(model, wanted, weights, picture=i, **loading(options))
    if one_each:
        chosen = range(len(images)) if only is None else [only]
        _save_each(Path(options.out), ((single(i), text(i)) for i in chosen))
    elif only is None:
        sheet = _sheet(images, wanted.prompts, wanted.num, options.scale)
        save_picture(options.out, sheet, text(None))
    else:
        save_picture(options.out, single(only), text(only))
    images = images if only is None else images[[only]]
    count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
    print(f"{count} in {time.perf_counter() - started:.1f} s: {Path(options.out)}")
    if options.trace:
        strip = np.stack([*request.watch(model, dataclasses.replace(wanted, num=1))], axis=1)
        shown = np.linspace(0, strip.shape[1] - 1, min(strip.shape[1], TRACED)).astype(int)
        captions = [
            f"step {j + 1}" + (f": {p}" if j == 0 else "") for p in wanted.prompts for j in shown
        ]
        rows = strip[:, shown].reshape(-1, *strip.shape[2:])
        save_png(options.trace, grid(rows, len(shown), captions=captions, scale=options.scale))
        print(f"steps: {Path(options.trace)}")


def _lines(path: str | None) -> list[str]:
    """The lines of a file of prompts, without empty ones."""
    if not path:
        return []
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts_file={path} is not UTF-8 text") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise UserError(f"--prompts_file={path} has no prompts")
    return lines


def _sheet(images: "Images", prompts: Sequence[str], num: int, scale: int) -> "Sheet":
    """Rows of at most COLUMNS images; prompts with several images each begin a row. The prompt is
    below its first image.
    """
    import numpy as np

    from vqd_jax.core.image_grid import WHITE, grid

    columns = min(num if num > 1 else len(prompts), COLUMNS)
    if num > 1 and num % columns and len(prompts) > 1:  # every prompt begins a row
        images = images.reshape(len(prompts), num, *images.shape[1:])
        empty = np.full((len(prompts), -num % columns, *images.shape[2:]), WHITE, np.uint8)
        images = np.concatenate([images, empty], axis=1)
        num = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    captions = [prompt if j == 0 else "" for prompt in prompts for j in range(num)]
    return grid(images, columns, captions=captions, scale=scale)


def _save_each(folder: Path, pictures: Iterable[tuple["Sheet", dict[str, str]]]) -> None:
    """Writes numbered PNG files, after those that are there."""
    from vqd_jax.core.image_grid import save_png

    numbers = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]
    for number, (image, text) in enumerate(pictures, start=max(numbers, default=-1) + 1):
        save_png(folder / f"{number:05d}.png", image, text)


def _check_flags(options: flags.FlagValues) -> None:
    """UserError for flags that do not go together, before the model is loaded."""
    changes = {"mask": options.mask, "extend": options.extend, "strength": options.strength != 1}
    for name, given in changes.items():
        if given and not options.init_image:
            raise UserError(f"--{name} needs an image: give it with --init_image")
    if options.like:
        for name in STORED:
            if options[name].present:
                raise UserError(f"--like takes everything from the file: leave out --{name}")


def _request(
    options: flags.FlagValues, model: "vqd_jax.inference.pipeline.TextToImage", prompts: list[str]
) -> "vqd_jax.inference.request.GenerationRequest":
    """The request that the flags describe."""
    from vqd_jax.inference import inpaint, request

    settings: dict[str, Any] = sampling(options)
    if options.negative_prompt:
        settings["negative_prompt"] = options.negative_prompt
    edit = None
    if options.init_image:
        edit = inpaint.read_edit_image(
            options.init_image, options.mask, options.extend, model.square
        )
    wanted = request.GenerationRequest(
        prompts=tuple(model.prompts(prompts, labels=bool(options.label))),
        num=options.num,
        seed=options.seed,
        batch=options.batch,
        settings=settings,
        edit=edit,
        strength=options.strength,
    )
    request.check(model, wanted)
    return wanted
