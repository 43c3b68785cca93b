"""An explanation as one figure. Needs matplotlib."""

import colorsys
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from vqd_jax.core.image_grid import save_figure
from vqd_jax.inference.explain import Explanation

COLUMNS = 8  # calls in the figure
WORDS = 10  # in a row
CHANGES = (
    ("unchanged", "#eceff3"),
    ("drawn", "#2f9e5b"),
    ("replaced by another", "#e8862e"),
    ("masked again", "#8e5bd0"),
)
MASKED = (0.62, 0.62, 0.62)


def changes(
    before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"], k: int
) -> Int[np.ndarray, " n"]:
    """What happened to each token, as an index of CHANGES."""
    changed = np.where(before == k, 1, np.where(after == k, 3, 2))
    return np.where(before == after, 0, changed)


def draw(explanation: Explanation, prompt: str, out: Path) -> None:
    """Writes the figure to a PNG file."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    fonts = sorted({font.name for font in font_manager.fontManager.ttflist if "CJK" in font.name})
    rows = sum(-(-len(words) // WORDS) for words in explanation.words)
    heights = [6.6, 1.8, *([0.8 + 1.6 * rows] if rows else [])]
    with (
        matplotlib.rc_context({"font.family": ["DejaVu Sans", *fonts], "font.size": 9}),
        warnings.catch_warnings(),
    ):
        # characters without a font are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=(14, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        title = (prompt if len(prompt) < 100 else prompt[:99] + "…").replace("$", r"\$")
        _calls(parts[0], explanation, f"“{title}”, call by call" if prompt else "Call by call")
        _counts(parts[1], explanation)
        if rows:
            _attention(parts[2], explanation, rows)
        save_figure(figure, out, "the explanation to")


def _calls(part: Any, explanation: Explanation, title: str) -> None:
    """A column for each call: the image, the tokens, what changed, and the confidence."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    calls = len(explanation.times)
    shown = np.unique(np.linspace(0, calls, min(calls + 1, COLUMNS)).round().astype(int))
    square = lambda x, gap: _side_by_side(x, explanation.groups, gap)
    colors = np.array([*map(_color, range(explanation.k)), MASKED])
    axes = part.subplots(4, len(shown), squeeze=False)
    for column, call in enumerate(shown):
        after = explanation.states[call]
        axes[0, column].imshow(explanation.images[call])
        axes[0, column].set_title(
            f"after call {call} of {calls}\nat time {explanation.times[call - 1]}"
            if call
            else "at the start,\npure noise",
            fontsize=9,
        )
        axes[1, column].imshow(square(colors[after], 1.0))
        if not call:
            for axis in axes[2:, column]:
                axis.set_frame_on(False)
            continue
        changed = changes(explanation.states[shown[column - 1]], after, explanation.k)
        axes[2, column].imshow(
            square(changed.astype(float), np.nan),
            cmap=ListedColormap([color for _, color in CHANGES]),
            vmin=-0.5,
            vmax=len(CHANGES) - 0.5,
        )
        confidence = axes[3, column].imshow(
            square(explanation.confidence[call - 1], np.nan), cmap="viridis", vmin=0, vmax=1
        )
        axes[3, column].set_xlabel(f"mean {explanation.confidence[call - 1].mean():.0%}")
    order = "coarse to fine codes\nfrom left to right"
    labels = (
        "the image;\ngrey: not drawn yet",
        "its tokens:\na colour for each code,\ngrey: [MASK]",
        "changes since the\nprevious column",
        "confidence in this call:\nprobability of the\nlikeliest code",
    )
    if explanation.groups > 1:
        labels = (labels[0], f"{labels[1]}\n\n{order}", *labels[2:])
    for axis, label in zip(axes[:, 0], labels):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    part.colorbar(
        confidence, cax=axes[3, -1].inset_axes((1.1, 0, 0.1, 1)), format=lambda x, _: f"{x:.0%}"
    )
    axes[2, -1].legend(
        handles=[Patch(color=color, label=name) for name, color in CHANGES],
        loc="center left",
        bbox_to_anchor=(1.05, 0.5),
        frameon=False,
    )
    part.suptitle(title, fontsize=13, fontweight="bold")


def _side_by_side(
    x: Shaped[np.ndarray, "n ..."], groups: int, gap: float
) -> Shaped[np.ndarray, "h w ..."]:
    """A value for each token as a map: the grids of the groups from left to right, with a column of
    `gap` between them.
    """
    side = math.isqrt(len(x) // groups)
    maps = x.reshape(groups, side, side, *x.shape[1:])
    column = np.full_like(maps[0, :, :1], gap)
    parts = [part for each in maps for part in (column, each)]
    return np.concatenate(parts[1:], axis=1)


def _counts(part: Any, explanation: Explanation) -> None:
    """The number of tokens that each call changed, by kind of change."""
    axis = part.subplots()
    each = np.array(
        [
            np.bincount(changes(a, b, explanation.k), minlength=len(CHANGES))
            for a, b in zip(explanation.states, explanation.states[1:])
        ]
    )
    calls, bottom = np.arange(1, len(each) + 1), np.zeros(len(each))
    for kind, (name, color) in list(enumerate(CHANGES))[1:]:
        if each[:, kind].any():
            axis.bar(calls, each[:, kind], bottom=bottom, color=color, label=name)
            bottom += each[:, kind]
    axis.set(xlabel="call", ylabel="tokens", xlim=(0.4, len(each) + 0.6))
    axis.set_title(
        f"Tokens changed by each call, of {explanation.states.shape[1]}",
        loc="left",
        fontweight="bold",
    )
    for locator in (axis.xaxis.get_major_locator(), axis.yaxis.get_major_locator()):
        locator.set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    if bottom.any():
        axis.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _attention(part: Any, explanation: Explanation, rows: int) -> None:
    """A heat map for each word, over the image."""
    axes, (height, width) = part.subplots(rows, WORDS, squeeze=False), explanation.images.shape[1:3]
    grey = np.repeat(explanation.images[-1].mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    for axis in axes.flat:
        axis.set_axis_off()
    row = 0
    for words in explanation.words:
        for i, word in enumerate(words):
            axis = axes[row + i // WORDS, i % WORDS]
            axis.imshow(grey)
            axis.imshow(
                word.attention.reshape(math.isqrt(len(word.attention)), -1),
                cmap="inferno",
                alpha=0.7,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axis.set_title(
                f"{word.text[:20]}\n{word.attention.mean():.0%}".replace("$", r"\$"), fontsize=10
            )
        row += -(-len(words) // WORDS)
    part.suptitle(
        "Cross-attention to each word, mean over layers, heads and calls"
        + "; the prompts one below the other" * (len(explanation.words) > 1),
        fontsize=11,
        fontweight="bold",
    )
    part.supxlabel(
        "Bright positions attend most to the word. The percentage is its share of all attention;\n"
        "(start), (end) and (padding) are tokens around the words, which often get attention where "
        "no word matters.",
        fontsize=9,
    )


def _color(code: int) -> tuple[float, float, float]:
    """A colour for a code, far from those of its neighbours."""
    return colorsys.hsv_to_rgb(
        code * 0.618034 % 1, (0.9, 0.55, 0.75)[code % 3], (0.95, 0.85, 0.6)[code // 3 % 3]
    )
