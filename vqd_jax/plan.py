"""Plans where to spend network calls: `python -m vqd_jax.plan --workdir=DIR --calls=16`.

Measures on held-out pictures how uncertain the model is about a token when some of the others are known, in random and in
Halton order, and keeps that beside the checkpoint; `sample --sampler=counts` then finds the best number of tokens for each
of any number of calls. Draws the curve and the plan.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int

from vqd_jax import build, command, evaluation, pipeline
from vqd_jax.data.loader import sequential
from vqd_jax.errors import UserError
from vqd_jax.progress import bar
from vqd_jax.samplers.counts import halton_places
from vqd_jax.samplers.planner import best_counts, fixed_order_cost, random_order_cost
from vqd_jax.train import programs, stages
from vqd_jax.train.tokens import cached_tokens

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir; the plan is kept in it.")
_CALLS = flags.DEFINE_integer("calls", 16, "Network calls of the plan that is shown.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 128, "Pictures to measure on.", lower_bound=1)
_SPLIT = flags.DEFINE_enum("split", "held_out_cells", ["held_out_cells", "held_out_items", "train"], "Where they are from.")
_POINTS = flags.DEFINE_integer("points", 16, "Numbers of known tokens to measure at; the rest is interpolated.", lower_bound=2)
_CACHE = flags.DEFINE_string("cache", None, "Where data sets and tokens are built; ~/.cache/vqd_jax/data by default.")
_OUT = flags.DEFINE_string("out", None, "The picture; <workdir>/diffusion/plan.png by default.")


def measure(model: pipeline.TextToImage, tokens: Int[np.ndarray, "i n"], captions: list[str], points: int) -> dict[str, np.ndarray]:
    """Mean cross-entropies in nats: "random" (n,), by the number of known tokens, and "halton" (n, n), by the number of
    known tokens and the place in the order, from runs at `points` numbers and straight lines between them."""
    n, process = tokens.shape[1], model.process
    masked = 1 - np.asarray(process.unmasked)
    places = halton_places(n)
    counts = np.unique(np.round(n * (np.arange(points) / (points - 1)) ** 1.5 * (n - 1) / n).astype(int))
    random, halton = np.zeros(len(counts)), np.full((len(counts), n), np.nan)
    rng = np.random.default_rng(0)
    load = lambda i, _: {"tokens": tokens[i], "text": model.tokenizer(captions[i:i + 1])[0]}
    batches = list(sequential(list(range(len(tokens))), stages.ROWS, load))
    with bar(len(counts) * len(batches) * 2, description="measuring", unit="batch") as progress:
        for j, count in enumerate(counts):
            t = np.int32(np.abs(masked[1:] - (1 - count / n)).argmin() + 1)
            sums, weight = np.zeros(n), 0
            entropies = []
            for batch, valid in batches:
                rows = len(batch["tokens"])
                shuffled = rng.random((rows, n)).argsort(1).argsort(1)
                ce = np.asarray(programs.cross_entropy(model.stage, model.weights, batch["tokens"], batch["text"], shuffled < count, t))
                entropies.append(ce[:valid][(shuffled >= count)[:valid]])
                progress.update()
                rolled = (places[None] - rng.integers(n, size=(rows, 1))) % n
                ce = np.asarray(programs.cross_entropy(model.stage, model.weights, batch["tokens"], batch["text"], rolled < count, t))
                sums += np.take_along_axis(ce, rolled.argsort(1), axis=1)[:valid].sum(0)
                weight += valid
                progress.update()
            random[j] = np.concatenate(entropies).mean()
            halton[j] = sums / weight
    every = np.arange(n)
    falling = lambda x: np.minimum.accumulate(x, axis=0)  # knowing more does not make a token less certain
    return {"random": falling(np.interp(every, counts, random)),
            "halton": falling(np.stack([np.interp(every, counts, halton[:, i]) for i in range(n)], axis=1))}


def draw(entropy: dict[str, np.ndarray], calls: int, out: Path) -> None:
    """The curve of each order with the steps of its plan."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(entropy), figsize=(5.2 * len(entropy), 3.6), layout="constrained", squeeze=False)
    for axis, (order, values) in zip(axes[0], entropy.items()):
        curve = np.diagonal(values) if values.ndim == 2 else values
        counts, lost = plan(entropy, order, calls)
        known = np.append(0, np.cumsum(counts))
        axis.plot(np.arange(len(curve)), curve, color="#3366cc", linewidth=1.8, label="cross-entropy")
        for a, b in zip(known, known[1:]):
            now = values[a, a:b] if values.ndim == 2 else np.full(b - a, values[a])
            axis.fill_between(np.arange(a, b + 1), np.append(curve[a:b], curve[min(b, len(curve) - 1)]), np.append(now, now[-1]),
                              color="#dd6b20", alpha=0.35, linewidth=0)
        axis.plot(known[:-1], curve[known[:-1]], "o", color="#dd6b20", markersize=4, label=f"{calls} calls, {lost:.1f} nats lost")
        axis.set(title=f"{order} order", xlabel="known tokens", ylabel="nats per token")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=120, metadata={"Software": "vqd_jax"})
    pyplot.close(figure)


def plan(entropy: dict[str, np.ndarray], order: str, calls: int) -> tuple[tuple[int, ...], float]:
    """(tokens at each call, nats lost) for an order."""
    values: Float[np.ndarray, ...] = entropy[order]
    return best_counts(fixed_order_cost(values) if values.ndim == 2 else random_order_cost(values), calls)


def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: a trained workdir to make a plan for")
    workdir = Path(_WORKDIR.value)
    model = pipeline.load(workdir)
    n = model.process and int(np.prod(model.stage.denoiser.grid))
    if _CALLS.value > n:
        raise UserError(f"a plan for {n} tokens has 1..{n} calls, got {_CALLS.value}")
    path = pipeline.plan_file(workdir)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the plan belongs into {path.parent}, which cannot be written to")
    cache = evaluation.cache(_CACHE.value, workdir)
    source = stages.Squares(build.source(model.config, cache), build.transform(model.config, training=False))
    chosen = stages.spread(stages.indices(source, _SPLIT.value), _IMAGES.value)
    if not chosen:
        raise UserError(f"there are no pictures in the split {_SPLIT.value}: choose another with --split")
    tokens = cached_tokens(cache, source, model.codec_weights, model.encode)
    entropy = measure(model, tokens[chosen], [source.records[i].captions[0] for i in chosen], _POINTS.value)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        np.savez(part, **entropy)
    Path(part.name).replace(path)
    for order in entropy:
        counts, lost = plan(entropy, order, _CALLS.value)
        print(f"{order}: {', '.join(map(str, counts))} tokens at the {_CALLS.value} calls, {lost:.2f} nats lost for the whole picture")
    print(f"kept in {path}; --sampler=counts uses it")
    out = Path(_OUT.value) if _OUT.value else path.with_suffix(".png")
    with contextlib.suppress(ImportError):
        draw(entropy, _CALLS.value, out)
        print(out)


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
