"""What plans are made of: how uncertain a model is about a token when some of the others are known,
as numbers and a picture.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vqd_jax.core.image_grid import save_figure
from vqd_jax.data.batches import ROWS
from vqd_jax.data.loader import sequential
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.call_planner import best_counts, fixed_order_cost, random_order_cost
from vqd_jax.samplers.counts import halton_ranks
from vqd_jax.stages import jitted


def measure(
    model: TextToImage, tokens: Int[np.ndarray, "i n"], captions: list[str], points: int
) -> dict[str, np.ndarray]:
    """Mean cross-entropies in nats: "random" (n,), by the number of known tokens, and "halton" (n,
    n), by the number of known tokens and the place in the order (0 for those that are known), from
    runs at `points` numbers and straight lines between them; in the Halton order between places
    equally far ahead, since it begins anywhere.
    """
    n, process = tokens.shape[1], model.process
    masked = 1 - np.asarray(process.unmasked)
    places = halton_ranks(n)
    counts = np.unique(
        np.round(n * (np.arange(points) / (points - 1)) ** 1.5 * (n - 1) / n).astype(int)
    )
    random, ahead = np.zeros(len(counts)), np.full((len(counts), n), np.nan)
    rng = np.random.default_rng(0)
    load = lambda i, _: {"tokens": tokens[i], "text": model.tokenizer(captions[i : i + 1])[0]}
    batches = list(sequential(list(range(len(tokens))), ROWS, load))
    with bar(len(counts) * len(batches) * 2, description="measuring", unit="batch") as progress:
        for j, count in enumerate(counts):
            t = np.int32(np.abs(masked[1:] - (1 - count / n)).argmin() + 1)
            sums, weight = np.zeros(n), 0
            entropies = []
            for batch, valid in batches:
                rows = len(batch["tokens"])
                shuffled = rng.random((rows, n)).argsort(1).argsort(1)
                ce = np.asarray(
                    jitted.cross_entropy(
                        model.stage,
                        model.weights,
                        batch["tokens"],
                        batch["text"],
                        shuffled < count,
                        t,
                    )
                )
                entropies.append(ce[:valid][(shuffled >= count)[:valid]])
                progress.update()
                rolled = (places[None] - rng.integers(n, size=(rows, 1))) % n
                ce = np.asarray(
                    jitted.cross_entropy(
                        model.stage,
                        model.weights,
                        batch["tokens"],
                        batch["text"],
                        rolled < count,
                        t,
                    )
                )
                sums += np.take_along_axis(ce, rolled.argsort(1), axis=1)[:valid].sum(0)
                weight += valid
                progress.update()
            random[j] = np.concatenate(entropies).mean()
            ahead[j, : n - count] = sums[count:] / weight
    halton = np.zeros((n, n))
    for far in range(n):
        there, first = counts[counts + far < n], np.arange(n - far)
        between = np.interp(first, there, ahead[: len(there), far])
        nearer = halton[
            first, first + max(far - 1, 0)
        ]  # stands in where the order ends before the next measurement
        halton[first, first + far] = np.where(first <= there[-1], between, nearer)
    falling = lambda x: np.minimum.accumulate(
        x, axis=0
    )  # knowing more does not make a token less certain
    return {"random": falling(np.interp(np.arange(n), counts, random)), "halton": falling(halton)}


def draw(entropy: dict[str, np.ndarray], calls: int, out: Path) -> None:
    """The curve of each order with the steps of its plan."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(entropy), figsize=(5.2 * len(entropy), 3.6), layout="constrained", squeeze=False
    )
    for axis, (order, values) in zip(axes[0], entropy.items()):
        curve = np.diagonal(values) if values.ndim == 2 else values
        counts, lost = plan(entropy, order, calls)
        known = np.append(0, np.cumsum(counts))
        axis.plot(
            np.arange(len(curve)), curve, color="#3366cc", linewidth=1.8, label="cross-entropy"
        )
        for a, b in zip(known, known[1:]):
            now = values[a, a:b] if values.ndim == 2 else np.full(b - a, values[a])
            axis.fill_between(
                np.arange(a, b + 1),
                np.append(curve[a:b], curve[min(b, len(curve) - 1)]),
                np.append(now, now[-1]),
                color="#dd6b20",
                alpha=0.35,
                linewidth=0,
            )
        axis.plot(
            known[:-1],
            curve[known[:-1]],
            "o",
            color="#dd6b20",
            markersize=4,
            label=f"{calls} calls, {lost:.1f} nats lost",
        )
        axis.set(title=f"{order} order", xlabel="known tokens", ylabel="nats per token")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    save_figure(figure, out)
    pyplot.close(figure)


def plan(entropy: dict[str, np.ndarray], order: str, calls: int) -> tuple[tuple[int, ...], float]:
    """(tokens at each call, nats lost) for an order."""
    values: Float[np.ndarray, ...] = entropy[order]
    return best_counts(
        fixed_order_cost(values) if values.ndim == 2 else random_order_cost(values), calls
    )
