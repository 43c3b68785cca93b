"""Plans where to spend network calls: `vqd plan --workdir=DIR --calls=16`.

Measures on held-out pictures how uncertain the model is about a token when some of the others are
known, in random and in Halton order, and keeps that beside the checkpoint; `sample
--sampler=counts` then finds the best number of tokens for each of any number of calls. Draws the
curve and the plan.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vqd_jax.cli import runner
from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.data import batches
from vqd_jax.data.token_cache import cached_tokens
from vqd_jax.eval import evaluation
from vqd_jax.inference import pipeline, plan
from vqd_jax.runtime.workdir import plan_file

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir; the plan is kept in it.")
_CALLS = flags.DEFINE_integer(
    "calls", 16, "Network calls of the plan that is shown.", lower_bound=1
)
_IMAGES = flags.DEFINE_integer("images", 128, "Pictures to measure on.", lower_bound=1)
_SPLIT = flags.DEFINE_enum(
    "split", "held_out_cells", ["held_out_cells", "held_out_items", "train"], "Where they are from."
)
_POINTS = flags.DEFINE_integer(
    "points", 16, "Numbers of known tokens to measure at; the rest is interpolated.", lower_bound=2
)
_CACHE = flags.DEFINE_string(
    "cache", None, "Where data sets and tokens are built; ~/.cache/vqd_jax/data by default."
)
_OUT = flags.DEFINE_string("out", None, "The picture; <workdir>/diffusion/plan.png by default.")


def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: a trained workdir to make a plan for")
    workdir = Path(_WORKDIR.value)
    model = pipeline.load(workdir)
    if pipeline.fixed_sampling(model.stage).get("sampler") == "previous":
        raise UserError(
            "a plan is made from predictions of x_0, and this model predicts the previous state"
        )
    n = model.process and int(np.prod(model.stage.denoiser.grid))
    if _CALLS.value > n:
        raise UserError(f"a plan for {n} tokens has 1..{n} calls, got {_CALLS.value}")
    path = plan_file(workdir)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the plan belongs into {path.parent}, which cannot be written to")
    cache = evaluation.cache(_CACHE.value, workdir)
    source = batches.Resized(
        build.source(model.config, cache), build.transform(model.config, training=False)
    )
    chosen = batches.spread(batches.indices(source, _SPLIT.value), _IMAGES.value)
    if not chosen:
        raise UserError(
            f"there are no pictures in the split {_SPLIT.value}: choose another with --split"
        )
    tokens = cached_tokens(cache, source, model.codec_weights, model.encode)
    entropy = plan.measure(
        model, tokens[chosen], [source.records[i].captions[0] for i in chosen], _POINTS.value
    )
    pipeline.write_plan(workdir, entropy)
    for order in entropy:
        counts, lost = plan.plan(entropy, order, _CALLS.value)
        print(
            f"{order}: {', '.join(map(str, counts))} tokens at the {_CALLS.value} calls, "
            f"{lost:.2f} nats lost for the whole picture"
        )
    print(f"kept in {path}; --sampler=counts uses it")
    out = Path(_OUT.value) if _OUT.value else path.with_suffix(".png")
    with contextlib.suppress(ImportError):
        plan.draw(entropy, _CALLS.value, out)
        print(out)


def run() -> None:
    runner.run(main)
