"""Measures how uncertain a model is about a token when some of the others are known, from which
`samplers.call_planner` finds the best number of tokens for each call.
"""

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import comb

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
    the place in the order, 0 for tokens that are known. They are measured at `points` numbers of
    known tokens and interpolated linearly; for Halton between tokens equally far ahead, as the
    order starts at a random position.

    With several groups of codes both are (n, n), as samplers reveal the coarse codes of a position
    first: "random" is the mean over random orders in which the tokens of each position are sorted
    so, and "halton", which has one group after the other, is also measured at the ends of each.
    """
    n, process, groups = tokens.shape[1], model.process, model.codec.codebook.groups
    masked, positions = 1 - np.asarray(process.unmasked), n // groups
    order = halton_ranks(positions)
    shares = (np.arange(points) / (points - 1)) ** 1.5 * (n - 1) / n  # denser where few are known
    starts = np.arange(0, n, positions)
    ends = [*starts, *(starts + positions - 1)]
    counts = np.unique([*np.round(n * shares).astype(int), *ends])
    mean, halton = np.zeros(len(counts)), np.zeros((len(counts), n))
    random = np.zeros((len(counts), groups, groups))  # see `_by_masked`
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
            images = 0
            entropies = []
            for batch, valid in batches:
                rows = len(batch["tokens"])
                ranks = rng.random((rows, n)).argsort(1).argsort(1)
                ranks = np.sort(ranks.reshape(rows, groups, -1), axis=1).reshape(rows, -1)
                nats = cross_entropy(batch, ranks < count, t)
                entropies.append(nats[:valid][(ranks >= count)[:valid]])
                random[j] += _by_masked(nats[:valid], (ranks >= count)[:valid], groups)
                ranks = (order[None] - rng.integers(positions, size=(rows, 1))) % positions
                ranks = np.tile(ranks, groups) + starts.repeat(positions)
                nats = cross_entropy(batch, ranks < count, t)
                halton[j] += np.take_along_axis(nats, ranks.argsort(1), axis=1)[:valid].sum(0)
                images += valid
            mean[j] = np.concatenate(entropies).mean()
            random[j] /= images * (n - count)
            halton[j, count:] /= images

    if groups == 1:
        random_order = np.interp(np.arange(n), counts, mean)
    else:
        random_order = _random_order(counts, random, n)
    halton_order = _interpolate_groups(counts, halton, starts)
    return {"random": _falling(random_order), "halton": _falling(halton_order)}


def _by_masked(
    nats: Float[np.ndarray, "b n"], masked: Bool[np.ndarray, "b n"], groups: int
) -> Float[np.ndarray, "m j"]:
    """[m - 1, j]: of all positions with m masked tokens, m times the sum of `nats` over the tokens
    that have j coarser masked ones.
    """
    nats, masked = (x.reshape(len(x), groups, -1) for x in (nats, masked))
    coarser, total = masked.cumsum(1) - 1, masked.sum(1)[:, None].repeat(groups, 1)
    out = np.zeros((groups, groups))
    np.add.at(out, (total[masked] - 1, coarser[masked]), (total * nats)[masked])
    return out


def _random_order(
    counts: Int[np.ndarray, " c"], measured: Float[np.ndarray, "c m j"], n: int
) -> Float[np.ndarray, "n n"]:
    """[known, place in the order] for random orders in which the tokens of each position are sorted
    from coarse to fine.

    `measured` are means of `_by_masked` over the masked tokens. The token at a place has j coarser
    masked ones if the order before sorting, which is random, puts j of the others of its position
    before it.
    """
    known, place = np.arange(n)[:, None], np.arange(n)[None]
    before, after, others = place - known, n - 1 - place, n - 1 - known
    out = np.zeros((n, n))
    for m, j in zip(*np.tril_indices(measured.shape[2])):  # m others of the position are masked
        each = np.interp(known, counts, measured[:, m, j])
        ways = comb(before, j) * comb(after, m - j)
        out += each * np.divide(ways, comb(others, m), out=np.zeros_like(ways), where=others >= m)
    return np.triu(out)


def _interpolate_groups(
    counts: Int[np.ndarray, " c"],
    measured: Float[np.ndarray, "c n"],
    starts: Int[np.ndarray, " g"],
) -> Float[np.ndarray, "n n"]:
    """`_interpolate_ahead` within each group. The tokens of later groups are those of the same
    places in the order at any number of known tokens.
    """
    n = measured.shape[1]
    out = np.zeros((n, n))
    for start, end in itertools.pairwise([*starts, n]):
        inside, before = (counts >= start) & (counts < end), counts <= start
        for i in range(start, end):
            out[:start, i] = np.interp(np.arange(start), counts[before], measured[before, i])
        block = _interpolate_ahead(counts[inside] - start, measured[inside, start:end])
        out[start:end, start:end] = block
    return out


def _interpolate_ahead(
    counts: Int[np.ndarray, " c"], measured: Float[np.ndarray, "c n"]
) -> Float[np.ndarray, "n n"]:
    """[known, place in the order] from measurements at `counts` of known tokens, between tokens
    equally far ahead.
    """
    n = measured.shape[1]
    out = np.zeros((n, n))
    for distance in range(n):
        before, known = counts[counts + distance < n], np.arange(n - distance)
        ahead = measured[np.arange(len(before)), before + distance]
        between = np.interp(known, before, ahead)
        # where the order ends before the next measurement: the token one place nearer
        nearer = out[known, known + max(distance - 1, 0)]
        out[known, known + distance] = np.where(known <= before[-1], between, nearer)
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
