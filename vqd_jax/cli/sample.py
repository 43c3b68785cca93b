"""Pictures from text: `vqd sample --workdir=DIR --prompt="…" [--prompt="…"] --num=4
--out=FILE.png`.

With --init_image it changes a picture instead: --mask says where (white is repainted), --strength
how much, --extend makes it larger. The file says how it was made: --like=FILE.png makes the same
pictures again.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vqd_jax.cli import runner, sampling_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], 'What to draw; may be repeated. "a cat AND a dog :0.5" blends two.'
)
_LABEL = flags.DEFINE_multi_string(
    "label", [], "Of class models: the number or name of the class to draw; may be repeated."
)
_NEGATIVE = flags.DEFINE_string(
    "negative_prompt", "", "What guidance leads away from, instead of the learned null."
)
_NUM = flags.DEFINE_integer("num", 4, "Pictures per prompt.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Same seed, prompts and settings: same pictures.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_BATCH = flags.DEFINE_integer(
    "batch", 16, "Pictures computed at once on each device.", lower_bound=1
)
_SCALE = flags.DEFINE_integer("scale", 3, "Enlargement of each picture in the file.", lower_bound=1)
_OUT = flags.DEFINE_string(
    "out", "samples.png", "The PNG to write, one row of pictures per prompt."
)
_TRACE = flags.DEFINE_string(
    "trace", None, "A second PNG: a picture of each prompt after network calls, at most 16 of them."
)
_INIT = flags.DEFINE_string(
    "init_image",
    None,
    "A picture to change: it is scaled to the model's size, or kept if it is larger and "
    "--mask or --extend is given.",
)
_MASK = flags.DEFINE_string(
    "mask", None, "A picture of the same size: where it is white, the first one is repainted."
)
_STRENGTH = flags.DEFINE_float(
    "strength", 1.0, "How far back in time the change begins, in (0, 1]; 1 forgets the old content."
)
_LIKE = flags.DEFINE_string(
    "like", None, "A PNG of this command or of the page: draw the same pictures, or picture, again."
)
_EXTEND = flags.DEFINE_list(
    "extend", [], "LEFT,TOP,RIGHT,BOTTOM: pixels to paint around the picture."
)


_IN_FILE = (
    _PROMPT,
    _LABEL,
    _NEGATIVE,
    _NUM,
    _SEED,
    _BATCH,
    _INIT,
    _MASK,
    _STRENGTH,
    _EXTEND,
)  # with what sampling_flags.settings has


def main(argv: Any) -> None:
    from vqd_jax.core.errors import UserError
    from vqd_jax.core.image_grid import grid, save_png
    from vqd_jax.eval.generate import digest
    from vqd_jax.inference import pipeline, request

    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    asked = [pipeline.check_prompt(p) for p in [*_PROMPT.value, *_LABEL.value]]
    changes = {"--mask": _MASK.value, "--extend": _EXTEND.value, "--strength": _STRENGTH.value != 1}
    if not _INIT.value and any(changes.values()):
        raise UserError(
            f"{next(name for name, value in changes.items() if value)} needs a picture: give it "
            "with --init_image"
        )
    if _LIKE.value and (
        more := [*(flag.name for flag in _IN_FILE if flag.present), *sampling_flags.settings()]
    ):
        raise UserError(f"--like takes everything from the file: leave out --{more[0]}")
    started = time.perf_counter()
    loading = sampling_flags.loading()
    model = pipeline.load(_WORKDIR.value, **loading)
    weights = digest(model)
    wanted, picture = (
        request.read_file(model, _LIKE.value, weights)
        if _LIKE.value
        else (_asked(model, asked), None)
    )
    images = request.draw(model, wanted)
    if picture is None:
        captions = [p if j == 0 else "" for p in wanted.prompts for j in range(wanted.num)]
        sheet = grid(images, wanted.num, captions=captions, scale=_SCALE.value)
    else:
        images = images[[picture]]
        scale = _SCALE.value if _SCALE.present else 1
        sheet = images[0].repeat(scale, axis=0).repeat(scale, axis=1)
    save_png(
        _OUT.value, sheet, request.metadata(model, wanted, weights, picture=picture, **loading)
    )
    print(
        f"{len(images)} picture{'s' * (len(images) > 1)} in {time.perf_counter() - started:.1f} "
        f"s: {Path(_OUT.value)}"
    )
    if _TRACE.value:
        strip = np.stack([*request.watch(model, dataclasses.replace(wanted, num=1))], axis=1)
        shown = np.unique(
            np.linspace(0, strip.shape[1] - 1, min(strip.shape[1], 16)).astype(int)
        )  # of many calls some
        strip = strip[:, shown]
        captions = [
            f"call {j + 1}" + (f": {p}" if j == 0 else "") for p in wanted.prompts for j in shown
        ]
        save_png(
            _TRACE.value,
            grid(
                strip.reshape(-1, *strip.shape[2:]),
                strip.shape[1],
                captions=captions,
                scale=_SCALE.value,
            ),
        )
        print(f"after each call: {Path(_TRACE.value)}")


def _asked(model: Any, prompts: list[str]) -> Any:
    """The recipe that the flags describe."""
    from vqd_jax.inference import inpaint, request

    prompts = model.prompts(prompts, labels=bool(_LABEL.value))
    settings = sampling_flags.settings() | (
        {"negative_prompt": _NEGATIVE.value} if _NEGATIVE.value else {}
    )
    canvas = _INIT.value and inpaint.read(
        _INIT.value, _MASK.value, _EXTEND.value, model.config.data.image_size
    )
    wanted = request.GenerationRequest(
        prompts=tuple(prompts),
        num=_NUM.value,
        seed=_SEED.value,
        batch=_BATCH.value,
        settings=settings,
        canvas=canvas or None,
        strength=_STRENGTH.value,
    )
    request.check(model, wanted)
    return wanted


def run() -> None:
    runner.run(main)
