"""Draw the metrics of a run: vqd curves --workdir=DIR --out=FILE.png

One row of panels for each metrics.jsonl under the folder, which is one stage; matplotlib comes with
the extra `plots`.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vqd_jax.cli import runner
from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import save_figure
from vqd_jax.runtime.curves import Curve, read_curves, smooth

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_OUT = flags.DEFINE_string("out", "curves.png", "Picture to write.")

COLORS = ("#3366cc", "#dd6b20", "#2f855a", "#b83280")
SMOOTH_FROM = 50  # points; shorter curves are drawn as they are
LOG_AXIS_FROM = 10  # ratio of the largest to the smallest value


def curves(folder: str | os.PathLike, out: str | os.PathLike) -> None:
    """Draw every metric under `folder` to the picture `out`: raw in pale, smoothed on top, split
    names in one panel.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("drawing curves needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = read_curves(folder)
    rows = sum(-(-len(panels) // 4) for panels in stages.values())
    columns = min(4, max(map(len, stages.values())))
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 2.9 * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    names = dict.fromkeys(
        line for panels in stages.values() for lines in panels.values() for line in lines
    )
    colors = dict(zip(names, itertools.cycle(COLORS)))
    row = 0
    for stage, panels in stages.items():
        for i, (name, lines) in enumerate(panels.items()):
            axis = axes[row + i // 4, i % 4]
            axis.set_axis_on()
            _panel(axis, f"{stage}: {name}" if stage else name, lines, colors)
        row += -(-len(panels) // 4)
    figure.suptitle(f"Metrics of {Path(folder).absolute().name}", fontsize=13)
    try:
        save_figure(figure, Path(out), "the curves to")
    finally:
        pyplot.close(figure)


def _panel(axis: Any, title: str, lines: dict[str, Curve], colors: dict[str, str]) -> None:
    from matplotlib import ticker

    for name, (steps, values) in lines.items():
        if len(values) >= SMOOTH_FROM:
            axis.plot(steps, values, color=colors[name], alpha=0.25, linewidth=0.8)
            values = smooth(values, len(values) / 100)
        style = {"marker": "o", "markersize": 3} if len(values) < 20 else {}
        axis.plot(steps, values, color=colors[name], linewidth=1.6, label=name or None, **style)
    everything = np.concatenate([values for _, values in lines.values()])
    if everything.min() > 0 and everything.max() / everything.min() > LOG_AXIS_FROM:
        axis.set_yscale("log")
        decades = np.log10(everything.max() / everything.min())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if any(lines):
        axis.legend(fontsize=8, frameon=False)


def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: the folder of a run")
    curves(_WORKDIR.value, _OUT.value)
    print(_OUT.value)


def run() -> None:
    runner.run(main)
