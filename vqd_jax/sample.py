"""Pictures from text: `python -m vqd_jax.sample --workdir=DIR --prompt="…" [--prompt="…"] --num=4 --out=FILE.png`.

With --init_image it changes a picture instead: --mask says where (white is repainted), --strength how much, --extend
makes it larger.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vqd_jax import command, sampling_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], 'What to draw; may be repeated. "a cat AND a dog :0.5" blends two.')
_LABEL = flags.DEFINE_multi_string("label", [], "Of class models: the number or name of the class to draw; may be repeated.")
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What guidance leads away from, instead of the learned null.")
_NUM = flags.DEFINE_integer("num", 4, "Pictures per prompt.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, prompts and settings: same pictures.")
_BATCH = flags.DEFINE_integer("batch", 16, "Pictures computed at once on each device.", lower_bound=1)
_SCALE = flags.DEFINE_integer("scale", 3, "Enlargement of each picture in the file.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "samples.png", "The PNG to write, one row of pictures per prompt.")
_TRACE = flags.DEFINE_string("trace", None, "A second PNG: a picture of each prompt after network calls, at most 16 of them.")
_INIT = flags.DEFINE_string("init_image", None, "A picture to change: it is scaled to the model's size, or kept if it is larger and "
                                                "--mask or --extend is given.")
_MASK = flags.DEFINE_string("mask", None, "A picture of the same size: where it is white, the first one is repainted.")
_STRENGTH = flags.DEFINE_float("strength", 1.0, "How far back in time the change begins, in (0, 1]; 1 forgets the old content.")
_EXTEND = flags.DEFINE_list("extend", [], "LEFT,TOP,RIGHT,BOTTOM: pixels to paint around the picture.")


def main(argv: Any) -> None:
    from vqd_jax import editing, pipeline
    from vqd_jax.errors import UserError
    from vqd_jax.pictures import grid, save_png
    from vqd_jax.progress import bar

    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    asked = [pipeline.check_prompt(p) for p in [*_PROMPT.value, *_LABEL.value]]
    changes = {"--mask": _MASK.value, "--extend": _EXTEND.value, "--strength": _STRENGTH.value != 1}
    if not _INIT.value and any(changes.values()):
        raise UserError(f"{next(name for name, value in changes.items() if value)} needs a picture: give it with --init_image")
    started = time.perf_counter()
    loading = sampling_flags.loading()
    model = pipeline.load(_WORKDIR.value, **loading)
    prompts = model.prompts(asked, labels=bool(_LABEL.value))
    settings = sampling_flags.settings() | ({"negative_prompt": _NEGATIVE.value} if _NEGATIVE.value else {})
    model.settings(**{k: v for k, v in settings.items() if k != "negative_prompt"})  # bad ones end here
    wanted = [p for p in prompts for _ in range(_NUM.value)]
    if _INIT.value:
        picture = editing.read(_INIT.value, _MASK.value, _EXTEND.value, model.config.data.image_size)
        images = editing.paint(model, picture, wanted, seed=_SEED.value, strength=_STRENGTH.value, **settings)
    else:
        batch, images = min(_BATCH.value, len(wanted)), []
        with bar(len(wanted), description="sampling", unit="picture") as progress:
            for made in model.batches(wanted, batch, seed=_SEED.value, **settings):
                images.append(made)
                progress.update(len(made))
        images = np.concatenate(images)
    used = {**model.config.sampling, **settings, **loading, "seed": _SEED.value, "prompts": prompts, "num": _NUM.value}
    captions = [p if j == 0 else "" for p in prompts for j in range(_NUM.value)]
    save_png(_OUT.value, grid(images, _NUM.value, captions=captions, scale=_SCALE.value), {"vqd_jax": json.dumps(used)})
    print(f"{len(wanted)} pictures in {time.perf_counter() - started:.1f} s: {Path(_OUT.value)}")
    if _TRACE.value:
        strip = np.stack([images for _, images in model.watch(prompts, seed=_SEED.value, **settings)], axis=1)
        shown = np.unique(np.linspace(0, strip.shape[1] - 1, min(strip.shape[1], 16)).astype(int))  # of many calls some
        strip = strip[:, shown]
        captions = [f"call {j + 1}" + (f": {p}" if j == 0 else "") for p in prompts for j in shown]
        save_png(_TRACE.value, grid(strip.reshape(-1, *strip.shape[2:]), strip.shape[1], captions=captions, scale=_SCALE.value))
        print(f"after each call: {Path(_TRACE.value)}")


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
