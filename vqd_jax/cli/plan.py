"""Measure how many tokens to sample in each network call.

  vqd plan --workdir=DIR [--calls=16]

Measures on held-out images how uncertain the model is about a token given some of the others, for
random and Halton order, and stores the result in the workdir. From it, `vqd sample
--sampler=counts` computes the best number of tokens per call, for any number of calls. Prints the
plan for --calls and draws it, if matplotlib is installed.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli.flags import checkpoints_of, define_cache_flag, define_workdir_flag
from vqd_jax.core.buckets import as_path, is_bucket
from vqd_jax.core.errors import UserError


def define_flags(options: flags.FlagValues) -> None:
    define_workdir_flag(options, "the plan is stored in it")
    define_cache_flag(options)
    flags.DEFINE_integer(
        "calls", 16, "network calls of the plan to print", lower_bound=1, flag_values=options
    )
    flags.DEFINE_integer(
        "images", 128, "number of images to measure on", lower_bound=1, flag_values=options
    )
    flags.DEFINE_enum(
        "split",
        "held_out_cells",
        ["held_out_cells", "held_out_items", "train"],
        "split that the images are taken from",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "points",
        16,
        "numbers of known tokens to measure at; others are interpolated",
        lower_bound=2,
        flag_values=options,
    )
    flags.DEFINE_string(
        "out", None, "figure to write; <workdir>/diffusion/plan.png by default", flag_values=options
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    if not options.workdir:
        raise UserError("--workdir is missing: a trained workdir to make a plan for")

    from vqd_jax.config import build, sources
    from vqd_jax.data import batches
    from vqd_jax.data.token_cache import cached_tokens
    from vqd_jax.eval import evaluation
    from vqd_jax.inference import loading, pipeline, plan
    from vqd_jax.runtime.workdir import Workdir

    workdir = as_path(options.workdir)
    model = pipeline.load(workdir)
    print(checkpoints_of(model), flush=True)
    n = model.process and model.stage.tokens
    if options.calls > n:
        raise UserError(f"a plan for {n} tokens has 1..{n} calls, got {options.calls}")
    path = Workdir(workdir).plan
    if not is_bucket(path) and not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write the plan to {path.parent}: permission denied")
    cache = evaluation.cache_folder(options.cache, workdir)
    source = batches.Resized(
        sources.source(model.config, cache), build.transform(model.config, training=False)
    )
    chosen = batches.spread(batches.indices(source, options.split), options.images)
    if not chosen:
        raise UserError(
            f"there are no images in the split {options.split}: choose another with --split"
        )
    tokens = cached_tokens(cache, source, model.codec_weights, model.encode)
    captions = [source.records[i].captions[0] for i in chosen]
    entropy = plan.measure(model, tokens[chosen], captions, options.points)
    loading.write_plan(workdir, entropy)
    for order in entropy:
        counts, gap = plan.plan(entropy, order, options.calls)
        print(
            f"{order}: {', '.join(map(str, counts))} tokens at the {options.calls} calls, "
            f"KL gap {gap:.2f} nats per image"
        )
    print(f"stored in {path}; --sampler=counts uses it")
    out = Path(options.out) if options.out else path.with_suffix(".png")
    with contextlib.suppress(ImportError):
        plan.draw(entropy, options.calls, out)
        print(out)
