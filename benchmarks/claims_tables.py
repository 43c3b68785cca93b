"""What `claims.py` runs, and its tables: which variants each one compares, what the papers say, and
how rows become markdown.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

# of every run: the budget, and a network a little smaller than the config's; all emoji, so that
# held-out cells can be learned about
SETTINGS = {
    "stages": "('diffusion',)",
    "emoji.max_items": 0,
    "denoiser.width": 128,
    "denoiser.heads": 4,
    "learned_text.width": 128,
    "learned_text.heads": 4,
    "diffusion_train.examples": 48_000,
    "diffusion_train.batch_size": 32,
    "diffusion_train.ema": 0.99,
    "diffusion_train.evaluate_every": 48_000,
    "diffusion_train.save_every": 8_000,
    "diffusion_optim.warmup": 1_600,
    "held_out.examples": 32,
    "held_out.draws": 1,
    "preview.pictures": 4,
    "guard.hang": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A training run of the comparison.

    Attributes:
      flags: keys of the config and their values.
      calls: the numbers of network calls that images are sampled with.
      group: variants of a lower group run first.
      previous_state: the network predicts z_{t-1} (`previous_state.py`), not x_0.
    """

    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    calls: tuple[int, ...] = (25,)
    group: int = 1
    previous_state: bool = False


VARIANTS = {
    "default": Variant(calls=(25, 50, 100), group=0),
    "uniform": Variant({"process.schedule": "uniform"}, group=0),
    "absorbing": Variant({"process.schedule": "absorbing"}, group=0),
    "previous": Variant(
        {"diffusion_loss.auxiliary": 0.0}, calls=(100,), group=0, previous_state=True
    ),
    "no auxiliary": Variant({"diffusion_loss.auxiliary": 0.0}, calls=(25, 100), group=0),
    "mask 0.5": Variant({"process.final_mask": 0.5}),
    "mask 0.7": Variant({"process.final_mask": 0.7}),
    "T 25": Variant({"process.T": 25}),
    "T 50": Variant({"process.T": 50}, calls=(25, 50)),
    "autoregressive": Variant({"stages": "('autoregressive',)"}, calls=(64,)),
    "empty null": Variant({"condition.null": "empty"}, group=2),
    "small auxiliary": Variant({"diffusion_loss.auxiliary": 5e-4}, group=3),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows`: (label, variant, calls of its pictures, what the papers report)."""

    title: str
    rows: tuple[tuple[str, str, int, str], ...]


TABLES = {
    "process": Table(
        "Which noise",
        (
            ("mask and replace (90 % and 10 %)", "default", 25, "best"),
            ("mask only (absorbing)", "absorbing", 25, "worse"),
            ("replace only (uniform)", "uniform", 25, "worse"),
        ),
    ),
    "prediction": Table(
        "What is predicted",
        (
            ("x_0, with auxiliary loss", "default", 100, "best"),
            ("x_0, without", "no auxiliary", 100, ""),
            ("x_{t-1} itself", "previous", 100, "worse"),
        ),
    ),
    "auxiliary": Table(
        "Auxiliary loss",
        (
            ("0.03 (this config)", "default", 25, ""),
            ("0.0005 (the paper's)", "small auxiliary", 25, "better than none"),
            ("none", "no auxiliary", 25, "worse"),
        ),
    ),
    "mask_rate": Table(
        "Share masked at the end",
        (
            ("0.5", "mask 0.5", 25, "worse"),
            ("0.7", "mask 0.7", 25, "worse"),
            ("0.9", "default", 25, "best"),
            ("1.0 (absorbing)", "absorbing", 25, "worse"),
        ),
    ),
    "steps": Table(
        "Diffusion steps T in training, calls in sampling",
        (
            ("T = 25, 25 calls", "T 25", 25, ""),
            ("T = 50, 25 calls", "T 50", 25, ""),
            ("T = 50, 50 calls", "T 50", 50, ""),
            ("T = 100, 25 calls", "default", 25, "FID 15.46"),
            ("T = 100, 50 calls", "default", 50, "FID 13.62"),
            ("T = 100, 100 calls", "default", 100, "FID 12.97"),
        ),
    ),
    "baseline": Table(
        "Against the autoregressive baseline",
        (
            ("diffusion, 25 calls", "default", 25, "FID 15.46, 1.25 images/s"),
            ("diffusion, 50 calls", "default", 50, "FID 13.62, 0.67 images/s"),
            ("diffusion, 100 calls", "default", 100, "FID 12.97, 0.37 images/s"),
            ("autoregressive, a call a token", "autoregressive", 64, "FID 18.12, 0.08 images/s"),
        ),
    ),
    "null": Table(
        "What guidance leads away from",
        (
            ("a learned null", "default", 25, "best"),
            ("the empty caption", "empty null", 25, "worse"),
        ),
    ),
}
COLUMNS = (
    ("bits, validation", lambda row, calls: row["bits"]["validation"], "{:.3f}"),
    ("bits, test", lambda row, calls: row["bits"]["test"], "{:.3f}"),
    ("bits, seen", lambda row, calls: row["bits"]["train"], "{:.3f}"),
    ("VGG-KID, test", lambda row, calls: drawn(row, calls, "test", "vgg_kid"), "{:.3f}"),
    (
        "retrieval@1, test",
        lambda row, calls: 100 * drawn(row, calls, "test", "retrieval@1"),
        "{:.1f} %",
    ),
    (
        "retrieval@1, seen",
        lambda row, calls: 100 * drawn(row, calls, "train", "retrieval@1"),
        "{:.1f} %",
    ),
)


def drawn(row: dict[str, Any], calls: str, part: str, measure: str) -> float:
    """A score of the pictures, NaN while there are none."""
    return row["pictures"][calls][part][measure] if calls in row["pictures"] else np.nan


def runs_of(done: dict[str, Any], variant: str) -> list[dict[str, Any]]:
    return [row for row in done["rows"] if row["variant"] == variant]


def value(numbers: list[float], form: str) -> str:
    """Mean ± standard error; without the latter for a single seed."""
    numbers = [x for x in numbers if np.isfinite(x)]
    if not numbers:
        return "—"
    error = (
        f" ± {form.format(np.std(numbers, ddof=1) / len(numbers) ** 0.5)}"
        if len(numbers) > 1
        else ""
    )
    return (form.format(np.mean(numbers)) + error).replace(" % ±", " ±")


def table(name: str, done: dict[str, Any]) -> str:
    """One table as markdown; the row that is best on the validation pairs is bold."""
    rates = done.get("speed", {}).get("images_per_second", {}) if name == "baseline" else {}
    rows, means = [], {}
    for label, variant, calls, paper in TABLES[name].rows:
        runs = runs_of(done, variant)
        cells = [value([get(run, str(calls)) for run in runs], form) for _, get, form in COLUMNS]
        if name == "baseline":
            rate = rates.get("autoregressive" if variant == "autoregressive" else f"{calls} calls")
            cells.append(f"{rate:.1f}" if rate else "—")
        if runs:
            means[label] = np.mean([run["bits"]["validation"] for run in runs])
        rows.append((label, [*cells, str(len(runs)), paper]))
    best = min(means, key=means.get) if len(set(means.values())) > 1 else None
    head = [
        TABLES[name].title,
        *(column for column, *_ in COLUMNS),
        *(["images/s"] if name == "baseline" else []),
        "seeds",
        "the papers",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    same = [label for label in means if best and means[label] == means[best]]
    return "\n".join(
        lines
        + [
            f"| {f'**{label}**' if label in same else label} | {' | '.join(cells)} |"
            for label, cells in rows
        ]
    )


def markdown(done: dict[str, Any]) -> str:
    return "\n\n".join(table(name, done) for name in TABLES)


def fill(page: str, done: dict[str, Any]) -> str:
    """The page with the tables between their marks, <!-- table NAME --> and <!-- end -->."""
    return re.sub(
        r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table(m[2], done)}\n{m[3]}",
        page,
        flags=re.DOTALL,
    )


def plot(done: dict[str, Any], out: Path) -> None:
    """Bits per token on test cells, a panel for each table, every seed as a dot and their mean as a
    line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from vqd_jax.core.image_grid import save_figure

    shown = {
        name: dict(
            (variant, label.split(",")[0] if name in ("steps", "baseline") else label)
            for label, variant, *_ in TABLES[name].rows
        )
        for name in TABLES
    }
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 5.2), layout="constrained")
    for axis, (name, variants) in zip(axes.flat, shown.items()):
        for i, variant in enumerate(reversed(variants)):
            numbers = [run["bits"]["test"] for run in runs_of(done, variant)]
            axis.plot(numbers, [i] * len(numbers), "o", color="#3366cc", markersize=5, alpha=0.7)
            if numbers:
                axis.plot([np.mean(numbers)] * 2, [i - 0.3, i + 0.3], color="#dd6b20", linewidth=2)
        axis.set_yticks(range(len(variants)), list(reversed(variants.values())), fontsize=8)
        axis.set_ylim(-0.6, len(variants) - 0.4)
        axis.set_title(TABLES[name].title, fontsize=10)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.supxlabel("bits per token on test cells (lower is better)", fontsize=9)
    save_figure(figure, out)
    pyplot.close(figure)
    print(out)
