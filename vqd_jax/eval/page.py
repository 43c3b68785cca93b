"""Output of an evaluation for people: a table of measures, a sheet of the best, worst and random
images above real ones, and histograms.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.core.image_grid import Sheet, grid, save_figure
from vqd_jax.eval.evaluator import Scored

COLUMNS = 8
PERCENTAGES = (
    "retrieval@1",
    "retrieval@5",
    "style_accuracy",
    "precision",
    "recall",
    "coverage",
)  # as percentages


def table(result: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The measures of each part and their ceilings as text."""
    lines = []
    for part, row, shown in result_rows(result, parts):
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


def result_rows(
    result: Mapping[str, Any], parts: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(part, "generated" or "ceiling", measure -> value as text) of each measured row."""
    for part in parts:
        for row in ("generated", "ceiling"):
            values = result[part].get(row, {})
            shown = {
                name: _formatted(name, value, values.get(f"{name}_std"))
                for name, value in values.items()
                if not name.startswith("chance@") and not name.endswith("_std")
            }
            if shown:
                yield part, row, shown


def _formatted(name: str, value: float, std: float | None) -> str:
    if name in PERCENTAGES:
        return f"{value:.1%}"
    return f"{value:.4f}" if std is None else f"{value:.4f} ± {std:.4f}"


def page(scored: Mapping[str, Scored], seed: int) -> Sheet:
    """For each part the best, worst and random images, each above its nearest real image."""
    sheets = [_rows(name, part, seed) for name, part in scored.items()]
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate(
        [
            np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=255)
            for sheet in sheets
        ]
    )


def _rows(name: str, part: Scored, seed: int) -> Sheet:
    columns = min(COLUMNS, len(part.images))
    random = np.random.default_rng(seed).choice(len(part.images), columns, replace=False)
    rows = {"random": np.sort(random)}
    similarity = part.similarity
    if similarity:
        order = np.argsort(-similarity.values, kind="stable")
        rows = {"best": order[:columns], "worst": order[::-1][:columns], **rows}
    images, captions = [], []
    for kind, chosen in rows.items():
        images += [part.images[int(i)] for i in chosen]
        height, width = images[0].shape[:2]
        for i in chosen:
            caption = f"{name.replace('_', ' ')}, {kind}"
            if similarity:
                caption += f" {similarity.values[i]:.2f}"
            if any(part.prompts):
                caption += f": {part.prompts[i]}"
            captions.append(caption)
        if similarity:
            for i in chosen:
                real = Image.fromarray(similarity.images[similarity.nearest[i]])
                if real.size != (width, height):
                    real = real.resize((width, height))
                images.append(np.asarray(real))
                captions.append("nearest real image")
    return grid(np.stack(images), columns, captions=captions)


def plot(scored: Mapping[str, Scored], out: Path) -> None:
    """Histograms of the similarities and of the kernel distance over subsets. ImportError without
    matplotlib.
    """
    from matplotlib.figure import Figure

    similarity = {name: part.similarity for name, part in scored.items() if part.similarity}
    panels = [
        (
            {name: report.values for name, report in similarity.items()},
            "".join({report.meaning for report in similarity.values()}),
            "images",
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
    figure = Figure(figsize=(5.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
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
    save_figure(figure, out)


def _folded(text: str) -> str:
    """Breaks a long text into two lines."""
    half = text.find(" ", len(text) // 2)
    return text if len(text) < 60 or half < 0 else f"{text[:half]}\n{text[half + 1 :]}"
