"""Output of an evaluation for people: a table of measures, a sheet of the best, worst and random
images above real ones, and histograms.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from vqd_jax.core.image_grid import Sheet, caption_metadata, grid, save_figure
from vqd_jax.eval.evaluator import Scored
from vqd_jax.eval.intervals import SUFFIX

COLUMNS = 8
BINS = 40
ABOUT = (
    SUFFIX,
    "_std",
    "_standard_error",
    "_subset_size",
)  # endings of what is said about another measure
# names, or endings of names, of shares, which are printed as percentages
PERCENTAGES = (
    "retrieval@1",
    "retrieval@5",
    "_accuracy",
    "precision",
    "recall",
    "coverage",
    "restored",
    "changed",
)


def table(result: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The measures of each part and their ceilings as text, with 95 % intervals in brackets."""
    lines = []
    for part, row, texts in result_rows(result, parts):
        title = f"{part} ({result[part]['images']:,})" if row == "generated" else "  ceiling"
        lines.append(f"{title:26}" + "  ".join(f"{name} {text}" for name, text in texts.items()))
    lines += [
        f"bound, {name}: {b['nats_per_token']:.3f} nats = "
        f"{shown(b, '{:.3f}')['bits_per_token']} bits per token"
        for name, b in result.get("bound", {}).items()
    ]
    lines += [
        f"masked tokens, {name}: {shown(b, '{:.3f}')['bits_per_token']} bits per token"
        for name, b in result.get("masked_bits", {}).items()
    ]
    for wrong, rows in result.get("repair", {}).items():
        if wrong.endswith("%"):
            lines += [
                f"{f'repair, {wrong} wrong: {name}':34}"
                + "  ".join(f"{measure} {text}" for measure, text in shown(values).items())
                for name, values in rows.items()
            ]
    if "reconstruction" in result:
        lines.append(
            "reconstruction: "
            + ", ".join(
                f"{name} {text}" for name, text in shown(result["reconstruction"], "{:.4g}").items()
            )
        )
    if any("[" in line for line in lines):
        lines.append("[low, high]: 95 % intervals, which take images as independent draws")
    return "\n".join(lines)


def result_rows(
    result: Mapping[str, Any], parts: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(part, "generated" or "ceiling", measure -> value as text) of each measured row."""
    for part in parts:
        for row in ("generated", "ceiling"):
            if texts := shown(result[part].get(row, {})):
                yield part, row, texts


def shown(values: Mapping[str, Any], form: str = "{:.4f}") -> dict[str, str]:
    """Measures as text with their 95 % intervals, or else with the standard deviation over subsets
    or splits that they have.
    """
    return {
        name: _formatted(
            float(value),
            "{:.1%}" if name.endswith(PERCENTAGES) else form,
            values.get(name + SUFFIX),
            values.get(f"{name}_std"),
        )
        for name, value in values.items()
        if not (isinstance(value, dict) or name.startswith("chance@") or name.endswith(ABOUT))
    }


def _formatted(value: float, form: str, interval: Sequence[float] | None, std: float | None) -> str:
    if interval:
        return f"{form.format(value)} [{', '.join(map(form.format, interval))}]"
    return form.format(value) + ("" if std is None else f" (std {form.format(std)})")


def page(scored: Mapping[str, Scored], seed: int) -> tuple[Sheet, dict[str, str]]:
    """For each part the best, worst and random images, each above its nearest real image; and the
    captions that no font can draw, for the text of the PNG file.
    """
    sheets, texts = [], {}
    for name, part in scored.items():
        images, captions = _rows(name, part, seed)
        sheets.append(grid(images, min(COLUMNS, len(part.images)), captions=captions))
        texts |= caption_metadata(captions, f"captions of {name}")
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [
        np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=255)
        for sheet in sheets
    ]
    return np.concatenate(padded), texts


def _rows(name: str, part: Scored, seed: int) -> tuple[UInt8[np.ndarray, "b H W 3"], list[str]]:
    """The images of a part in the order of the page, and their captions."""
    columns = min(COLUMNS, len(part.images))
    random = np.random.default_rng(seed).choice(len(part.images), columns, replace=False)
    rows = {"random": np.sort(random)}
    similarity = part.similarity
    if similarity:
        order = np.argsort(-similarity.values, kind="stable")
        rows = {"best": order[:columns], "worst": order[::-1][:columns], **rows}
    images, captions = [], []
    for kind, chosen in rows.items():
        shown = [part.images[int(i)] for i in chosen]
        height, width = (images or shown)[0].shape[:2]
        images += [_fitted(image, width, height) for image in shown]
        for i in chosen:
            caption = f"{name.replace('_', ' ')}, {kind}"
            if similarity:
                caption += f" {similarity.values[i]:.2f}"
            if any(part.prompts):
                caption += f": {part.prompts[i]}"
            captions.append(caption)
        if similarity:
            for i in chosen:
                images.append(_fitted(similarity.images[similarity.nearest[i]], width, height))
                captions.append("nearest real image")
    return np.stack(images), captions


def _fitted(
    image: UInt8[np.ndarray, "_ _ 3"], width: int, height: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image in this size, on white if its shape is another."""
    if image.shape[:2] == (height, width):
        return image
    fitted = ImageOps.pad(Image.fromarray(image), (width, height), color="white")
    return np.asarray(fitted)


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
        edges = _edges(np.concatenate([*lines.values()]))
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


def _edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    """Edges of a histogram; also of equal values, between which no float would lie."""
    low, high = float(values.min()), float(values.max())
    least = 1e-6 * max(abs(low), abs(high), 1e-3)
    margin = max(0.0, least * BINS - (high - low)) / 2
    return np.linspace(low - margin, high + margin, BINS + 1)


def _folded(text: str) -> str:
    """Breaks a long text into two lines."""
    half = text.find(" ", len(text) // 2)
    return text if len(text) < 60 or half < 0 else f"{text[:half]}\n{text[half + 1 :]}"
