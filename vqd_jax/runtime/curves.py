"""What the metrics of a run say, as curves."""

import os
from pathlib import Path

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.log import METRICS, read_metrics

Curve = tuple[np.ndarray, np.ndarray]  # steps and values


def read_curves(folder: str | os.PathLike) -> dict[str, dict[str, dict[str, Curve]]]:
    """Stage → panel → line → (steps, values); "train/loss" is the line "train" of the panel "loss".

    Read from every metrics.jsonl in the folder or in a folder inside it, without values that are
    not finite. UserError if there is none.
    """
    folder = Path(folder)
    stages = {}
    for path in sorted([*folder.glob(METRICS), *folder.glob(f"*/{METRICS}")]):
        points = {}
        for row in read_metrics(path):
            for key, value in row.items():
                if key not in ("step", "time") and np.isfinite(value):
                    points.setdefault(key, []).append((row["step"], value))
        panels = {}
        for key, pairs in points.items():
            line, _, name = key.rpartition("/")
            panels.setdefault(name, {})[line] = tuple(np.array(pairs, float).T)
        if panels:
            stages["" if path.parent == folder else path.parent.name] = panels
    if not stages:
        raise UserError(
            f"there are no metrics to draw in {folder}, expected {METRICS} in it or in a folder "
            "inside it"
        )
    return stages


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average with a standard deviation of `width` points, over what there is at the ends."""
    offsets = np.arange(-int(3 * width), int(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    average = lambda x: np.convolve(np.pad(x, len(offsets) // 2), kernel, "valid")
    return average(values) / average(np.ones(len(values)))
