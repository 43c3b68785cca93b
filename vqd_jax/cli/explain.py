"""Show in one figure how an image was generated, step by step.

  vqd explain --prompt="a red apple" [--workdir=DIR] [--seed=7] [--out=FILE.png]

The image is the one that `vqd sample --num=1` generates with the same flags. Needs matplotlib, of
the extra `plots`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli.flags import (
    check_output_files,
    checkpoints_of,
    define_loading_flags,
    define_model_flag,
    define_prompt_flags,
    define_sampling_flags,
    loading,
    sampling,
)
from vqd_jax.core.extras import check_extra


def define_flags(options: flags.FlagValues) -> None:
    define_model_flag(options)
    define_prompt_flags(options)
    define_loading_flags(options)
    define_sampling_flags(options)
    flags.DEFINE_string("out", "explanation.png", "PNG to write", flag_values=options)


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    check_output_files(options, "out")
    check_extra("matplotlib", "plots", "drawing an explanation")

    from vqd_jax.inference import explain, explain_figure, pipeline
    from vqd_jax.inference.prompts import check_prompt

    prompts = [check_prompt(prompt) for prompt in [*options.prompt, *options.label]]
    model = pipeline.load(options.workdir, **loading(options))
    print(checkpoints_of(model), flush=True)
    prompt = explain.single_prompt(model.prompts(prompts, labels=bool(options.label)))
    explanation = explain.explain(
        model,
        prompt,
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        **sampling(options),
    )
    explain_figure.draw(explanation, prompt, Path(options.out))
    print(f"{len(explanation.times)} steps: {options.out}")
