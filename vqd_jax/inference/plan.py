"""Measures how uncertain a model is about a token when some of the others are known, from which
`samplers.call_planner` finds the best number of tokens for each call.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from vqd_jax.core.image_grid import save_figure
from vqd_jax.data.batches import ROWS
from vqd_jax.data.loader import sequential
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.call_planner import best_counts, reveal_cost
from vqd_jax.samplers.counts import halton_ranks
from vqd_jax.stages import jitted


def measure(
    model: TextToImage, tokens: Int[np.ndarray, "i n"], captions: list[str], points: int
) -> dict[str, np.ndarray]:
    """Mean cross-entropies in nats for two orders of tokens, "random" and "halton".

    "random" (n,): by the number of known tokens. "halton" (n, n): by the number of known tokens and
    the position in the order, 0 for positions that are known. They are measured at `points` numbers
    of known tokens and interpolated linearly; for Halton between positions equally far ahead, as
    the order starts at a random position.
    """
    n, process = tokens.shape[1], model.process
    masked = 1 - np.asarray(process.unmasked)
    order = halton_ranks(n)
    shares = (np.arange(points) / (points - 1)) ** 1.5 * (n - 1) / n  # denser where few are known
    counts = np.unique(np.round(n * shares).astype(int))
    random, ahead = np.zeros(len(counts)), np.full((len(counts), n), np.nan)
    rng = np.random.default_rng(0)
    load = lambda i, _: {"tokens": tokens[i], "text": model.tokenizer(captions[i : i + 1])[0]}
    batches = list(sequential(list(range(len(tokens))), ROWS, load))

    with bar(len(counts) * len(batches) * 2, description="measuring", unit="batch") as progress:

        def cross_entropy(batch: dict, known: Bool[np.ndarray, "b n"], t: np.int32) -> np.ndarray:
            progress.update()
            z_0, ids = batch["tokens"], batch["text"]
            return np.asarray(jitted.cross_entropy(model.stage, model.weights, z_0, ids, known, t))

        for j, count in enumerate(counts):
            t = np.int32(np.abs(masked[1:] - (1 - count / n)).argmin() + 1)
            sums, images = np.zeros(n), 0
            entropies = []
            for batch, valid in batches:
                rows = len(batch["tokens"])
                ranks = rng.random((rows, n)).argsort(1).argsort(1)
                nats = cross_entropy(batch, ranks < count, t)
                entropies.append(nats[:valid][(ranks >= count)[:valid]])
                ranks = (order[None] - rng.integers(n, size=(rows, 1))) % n
                nats = cross_entropy(batch, ranks < count, t)
                sums += np.take_along_axis(nats, ranks.argsort(1), axis=1)[:valid].sum(0)
                images += valid
            random[j] = np.concatenate(entropies).mean()
            ahead[j, : n - count] = sums[count:] / images

    return {
        "random": _falling(np.interp(np.arange(n), counts, random)),
        "halton": _falling(_interpolate_ahead(counts, ahead)),
    }


def _interpolate_ahead(
    counts: Int[np.ndarray, " c"], ahead: Float[np.ndarray, "c n"]
) -> Float[np.ndarray, "n n"]:
    """[known, position] from measurements [counts of known tokens, positions ahead of them]."""
    n = ahead.shape[1]
    out = np.zeros((n, n))
    for distance in range(n):
        measured, known = counts[counts + distance < n], np.arange(n - distance)
        between = np.interp(known, measured, ahead[: len(measured), distance])
        # where the order ends before the next measurement: the token one position nearer
        nearer = out[known, known + max(distance - 1, 0)]
        out[known, known + distance] = np.where(known <= measured[-1], between, nearer)
    return out


def _falling(entropy: np.ndarray) -> np.ndarray:
    """Knowing more tokens does not make a token less certain; noise in the measurement may."""
    return np.minimum.accumulate(entropy, axis=0)


def plan(entropy: dict[str, np.ndarray], order: str, calls: int) -> tuple[tuple[int, ...], float]:
    """(tokens to reveal at each call, KL gap in nats) for an order."""
    return best_counts(reveal_cost(entropy[order]), calls)


def draw(entropy: dict[str, np.ndarray], calls: int, out: Path) -> None:
    """Writes a figure of each order's cross-entropy, with the KL gap of its plan. ImportError
    without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(entropy), 3.6), layout="constrained")
    axes = figure.subplots(1, len(entropy), squeeze=False)[0]
    for axis, (order, values) in zip(axes, entropy.items()):
        curve = np.diagonal(values) if values.ndim == 2 else values
        counts, gap = plan(entropy, order, calls)
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
            label=f"{calls} calls, KL gap {gap:.1f} nats",
        )
        axis.set(title=f"{order} order", xlabel="known tokens", ylabel="nats per token")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    save_figure(figure, out)
