"""What an evaluation shows: its measures, as a table, a page with the best, the worst and random
pictures above real ones, and plots.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.core.image_grid import Sheet, grid, save_figure
from vqd_jax.eval.judge import Scored

COLUMNS = 8
SHARES = (
    "retrieval@1",
    "retrieval@5",
    "style_accuracy",
    "precision",
    "recall",
    "coverage",
)  # as percentages


def table(result: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The measures of each part, with their ceilings."""
    lines = []
    for part, row, shown in measured(result, parts):
        title = f"{part} ({result[part]['images']:,})" if row == "generated" else "  ceiling"
        lines.append(f"{title:26}" + "  ".join(f"{name} {text}" for name, text in shown.items()))
    lines += [
        f"bound, {name}: {b['nats_per_token']:.3f} nats = {b['bits_per_token']:.3f} bits per token"
        for name, b in result.get("bound", {}).items()
    ]
    if "reconstruction" in result:
        lines.append(
            "reconstruction: "
            + ", ".join(f"{k} {v:.4g}" for k, v in result["reconstruction"].items())
        )
    return "\n".join(lines)


def measured(
    result: Mapping[str, Any], parts: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(part, "generated" or "ceiling", measure → number as text) of what was measured."""
    for part in parts:
        for row in ("generated", "ceiling"):
            numbers = {
                k: v for k, v in result[part].get(row, {}).items() if not k.startswith("chance@")
            }
            shown = {
                k: f"{v:.1%}"
                if k in SHARES
                else f"{v:.4f}" + (f" ± {numbers[f'{k}_std']:.4f}" if f"{k}_std" in numbers else "")
                for k, v in numbers.items()
                if not k.endswith("_std")
            }
            if shown:
                yield part, row, shown


def page(scored: Mapping[str, Scored], seed: int) -> Sheet:
    """For each part the pictures that are most and least like real ones, and random ones, each
    above its closest real one.
    """
    sheets = [_rows(name, part, seed) for name, part in scored.items()]
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate(
        [
            np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=255)
            for sheet in sheets
        ]
    )


def _rows(name: str, part: Scored, seed: int) -> Sheet:
    columns = min(COLUMNS, len(part.pictures))
    random = np.sort(np.random.default_rng(seed).choice(len(part.pictures), columns, replace=False))
    rows = {"random": random}
    if like := part.likeness:
        order = np.argsort(-like.value, kind="stable")
        rows = {"best": order[:columns], "worst": order[::-1][:columns], **rows}
    images, captions = [], []
    for kind, numbers in rows.items():
        images += [part.pictures[int(i)] for i in numbers]
        title = f"{name.replace('_', ' ')}, {kind}"
        captions += [f"{title} {like.value[i]:.2f}" if like else title for i in numbers]
        if any(part.texts):
            captions[-len(numbers) :] = [
                f"{caption}: {part.texts[i]}"
                for caption, i in zip(captions[-len(numbers) :], numbers)
            ]
        if like:
            height, width = images[0].shape[:2]
            real = [Image.fromarray(like.pictures[like.closest[i]]) for i in numbers]
            images += [
                np.asarray(
                    image if image.size == (width, height) else image.resize((width, height))
                )
                for image in real
            ]
            captions += ["nearest real picture"] * len(real)
    return grid(np.stack(images), columns, captions=captions)


def plot(scored: Mapping[str, Scored], out: Path) -> None:
    """Histograms of the likeness, and of the kernel distance over subsets. ImportError without
    matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    likeness = {name: part.likeness for name, part in scored.items() if part.likeness}
    panels = [
        (
            {name: like.value for name, like in likeness.items()},
            "".join({like.meaning for like in likeness.values()}),
            "pictures",
        ),
        (
            {name: part.kernel for name, part in scored.items() if len(part.kernel)},
            "kernel distance of each subset",
            "subsets",
        ),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    for axis, (lines, label, unit) in zip(axes[0], panels):
        edges = np.histogram_bin_edges(np.concatenate([*lines.values()]), 40)
        for color, (name, values) in zip(
            ("#3366cc", "#dd6b20", "#2f855a", "#b83280"), lines.items()
        ):
            axis.hist(
                values,
                edges,
                alpha=0.55,
                color=color,
                weights=np.full(len(values), 1 / len(values)),
                label=f"{name.replace('_', ' ')}, mean {np.mean(values):.3f}",
            )
        axis.set_xlabel(_folded(label), fontsize=9)
        axis.set_ylabel(f"share of {unit}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    try:
        save_figure(figure, out)
    finally:
        pyplot.close(figure)


def _folded(text: str) -> str:
    """On two lines, if it is long."""
    half = text.find(" ", len(text) // 2)
    return text if len(text) < 60 or half < 0 else f"{text[:half]}\n{text[half + 1 :]}"
