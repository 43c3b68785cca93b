"""How a picture came about, as one figure: `vqd explain --workdir=DIR --prompt="…" [--seed=7]
[--out=FILE.png]`.

The picture is that of `vqd sample --num=1` with the same flags, to the bit. matplotlib comes with
the extra `plots`.
"""

import importlib.util
from pathlib import Path
from typing import Any

from absl import flags

from vqd_jax.cli import loading_flags, runner, sampling_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], 'What to draw. "a cat AND a dog :0.5" blends two.'
)
_LABEL = flags.DEFINE_multi_string(
    "label", [], "Of class models: the number or name of the class to draw."
)
_NEGATIVE = flags.DEFINE_string(
    "negative_prompt", "", "What guidance leads away from, instead of the learned null."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "As for vqd_jax.cli.sample.", lower_bound=0, upper_bound=2**32 - 1
)
_OUT = flags.DEFINE_string("out", "explanation.png", "The picture to write.")


def main(argv: Any) -> None:
    from vqd_jax.core.errors import UserError
    from vqd_jax.inference import explain, pipeline

    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    if not importlib.util.find_spec("matplotlib"):
        raise UserError("drawing an explanation needs matplotlib: pip install matplotlib")
    asked = [pipeline.check_prompt(prompt) for prompt in [*_PROMPT.value, *_LABEL.value]]
    model = pipeline.load(_WORKDIR.value, **loading_flags.loading())
    prompt = explain.only(model.prompts(asked, labels=bool(_LABEL.value)))
    found = explain.explain(
        model,
        prompt,
        seed=_SEED.value,
        negative_prompt=_NEGATIVE.value,
        **sampling_flags.settings(),
    )
    explain.draw(found, prompt, Path(_OUT.value))
    print(f"{len(found.times)} calls: {_OUT.value}")


def run() -> None:
    runner.run(main)
