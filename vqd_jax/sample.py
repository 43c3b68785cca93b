"""Pictures from text: `python -m vqd_jax.sample --workdir=DIR --prompt="…" [--prompt="…"] --num=4 --out=FILE.png`."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vqd_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; may be repeated.")
_NUM = flags.DEFINE_integer("num", 4, "Pictures per prompt.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", None, "Network calls, 1..T; the model's own setting by default.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance scale w; 1 is none (the paper's s is w - 1).")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Below 1: nearer to the most likely tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "Draw from the smallest set of tokens with this mass; 1 is all.")
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, prompts and settings: same pictures.")
_BATCH = flags.DEFINE_integer("batch", 16, "Pictures computed at once.", lower_bound=1)
_SCALE = flags.DEFINE_integer("scale", 3, "Enlargement of each picture in the file.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "samples.png", "The PNG to write, one row of pictures per prompt.")


def main(argv: Any) -> None:
    from vqd_jax import pipeline
    from vqd_jax.errors import UserError
    from vqd_jax.pictures import grid, save_png
    from vqd_jax.progress import bar

    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    if not _PROMPT.value:
        raise UserError('--prompt is missing, for example --prompt="a google style emoji of a red apple"')
    prompts = [pipeline.check_prompt(p) for p in _PROMPT.value]
    started = time.perf_counter()
    model = pipeline.load(_WORKDIR.value)
    settings = {name: flag.value for name, flag in (("calls", _CALLS), ("guidance", _GUIDANCE), ("temperature", _TEMPERATURE),
                                                    ("top_p", _TOP_P)) if flag.value is not None}
    wanted = [p for p in prompts for _ in range(_NUM.value)]
    batch, images = min(_BATCH.value, len(wanted)), []
    with bar(len(wanted), description="sampling", unit="picture") as progress:
        for made in model.batches(wanted, batch, seed=_SEED.value, **settings):
            images.append(made)
            progress.update(len(made))
    used = {**model.config.sampling, **settings, "seed": _SEED.value, "prompts": prompts, "num": _NUM.value}
    captions = [p if j == 0 else "" for p in prompts for j in range(_NUM.value)]
    sheet = grid(np.concatenate(images), _NUM.value, captions=captions, scale=_SCALE.value)
    save_png(_OUT.value, sheet, {"vqd_jax": json.dumps(used)})
    print(f"{len(wanted)} pictures in {time.perf_counter() - started:.1f} s: {Path(_OUT.value)}")


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
