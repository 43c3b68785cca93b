"""What the files of a workdir tell about its run, as plain values for the page: curves, pictures,
plans, times and so on.

What is not there is an empty list or None. Long curves and long rows of pictures are thinned
evenly, so that a page stays small.
"""

import base64
import functools
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.data.batches import spread
from vqd_jax.inference import pipeline, plan
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.curves import read_curves
from vqd_jax.runtime.log import METRICS, PREFIX, TIMINGS, read_metrics
from vqd_jax.runtime.workdir import MACHINE, stage_folder

POINTS = 2_000  # of a line
PICTURES = 40  # of a kind
CODES = 400_000  # numbers of all maps of codes together
LARGE = 128 * 1024  # bytes: larger pictures become JPEGs
WIDTH = 1_200  # pixels of such a JPEG at most
CALLS = (4, 8, 16, 32, 64)  # of plans, beside the config's own
PLANNED = 1_024  # tokens: of more a plan takes too long to make by the way
ORDER = ("vqvae", "diffusion", "autoregressive")  # of stages


def stages(workdir: Path) -> list[Path]:
    """The folders with metrics, in the order in which they are trained."""
    found = [path.parent for path in [*workdir.glob(METRICS), *workdir.glob(f"*/{METRICS}")]]
    return sorted(
        found,
        key=lambda folder: (
            ORDER.index(folder.name) if folder.name in ORDER else len(ORDER),
            folder.name,
        ),
    )


def curves(workdir: Path) -> list[dict[str, Any]]:
    """Stages with panels with lines with steps and values, which are numbers of metrics.jsonl;
    `timing` panels measure the machine.
    """
    if not (folders := stages(workdir)):
        return []
    found, out = read_curves(workdir), []
    timings = {name.removeprefix(PREFIX) for name in TIMINGS}
    for stage in ("" if folder == workdir else folder.name for folder in folders):
        panels = []
        for name, lines in found.get(stage, {}).items():
            kept = [
                {
                    "name": line,
                    "steps": _thin(steps.astype(int)),
                    "values": _thin(values),
                    "of": len(values),
                }
                for line, (steps, values) in lines.items()
                if line != "fault" and name != "examples"
            ]
            if kept:
                panels.append({"name": name, "timing": name in timings, "lines": kept})
        if panels:
            out.append(
                {
                    "stage": stage,
                    "panels": sorted(
                        panels, key=lambda panel: (panel["timing"], panel["name"] != "loss")
                    ),
                }
            )
    return out


def pictures(workdir: Path) -> list[dict[str, Any]]:
    """Of each kind of picture that training draws (stage/kind-STEP.png): stage, kind, steps and the
    pictures as data URIs.
    """
    kinds: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for folder in stages(workdir):
        for path in sorted(folder.glob("*.png")):
            if named := re.fullmatch(r"([a-z_]+)-(\d+)", path.stem):
                kinds.setdefault((folder.name, named[1]), []).append((int(named[2]), path))
    out = []
    for (stage, kind), files in kinds.items():
        shown = [
            (step, uri) for step, path in _spread(sorted(files), PICTURES) if (uri := picture(path))
        ]
        if shown:
            out.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "steps": [step for step, _ in shown],
                    "images": [uri for _, uri in shown],
                }
            )
    return out


def last_pictures(workdir: Path) -> list[tuple[str, str]]:
    """(stage, picture as a data URI) that a run ends with."""
    files = [
        (stage, workdir / (f"samples-{stage}.png" if stage != "diffusion" else "samples.png"))
        for stage in ORDER[1:]
    ]
    return [(stage, uri) for stage, path in files if (uri := picture(path))]


def picture(path: Path) -> str | None:
    """The file as a data URI, smaller if it is large; None if there is none or it is no picture."""
    try:
        stat = path.stat()
        return _embedded(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=4 * PICTURES)
def _embedded(path: Path, size: int, changed: int) -> str:
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as image:
        if size > LARGE:
            image = image.convert("RGB")
            image.thumbnail((WIDTH, WIDTH * 2))
            image.save(file := io.BytesIO(), "JPEG", quality=85)
            content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def codes(workdir: Path) -> dict[str, Any] | None:
    """How often each code was chosen for the held-out pictures: steps, and counts (step, k)."""
    files = sorted(
        (int(path.stem.removeprefix("codes-")), path) for path in workdir.glob("vqvae/codes-*.npy")
    )
    if not files:
        return None
    size = len(_loaded(files[-1][1]))
    shown = _spread(files, max(min(PICTURES, CODES // size), 1))
    return {
        "steps": [step for step, _ in shown],
        "counts": [_loaded(path).tolist() for _, path in shown],
    }


def _loaded(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from error


def plans(workdir: Path) -> list[dict[str, Any]]:
    """Of each order that `vqd plan` measured: the curve of cross-entropies by the number of known
    tokens, and for some numbers of calls the tokens of each call, the nats that are lost, and for
    each token in turn its cross-entropy in the call that draws it.
    """
    out, config = [], stored_config(workdir)
    for order, values in pipeline.read_plan(workdir).items():
        n = len(values)
        wanted = (
            sorted(
                {c for c in (*CALLS, config["sampling"]["calls"] if config else CALLS[0]) if c <= n}
            )
            if n <= PLANNED
            else []
        )
        made = [(calls, *plan.plan({order: values}, order, calls)) for calls in wanted]
        curve = np.diagonal(values) if values.ndim == 2 else values
        known = _thin(np.arange(n))
        out.append(
            {
                "order": order,
                "tokens": n,
                "known": known,
                "curve": [round(float(curve[i]), 5) for i in known],
                "plans": [
                    {
                        "calls": calls,
                        "counts": counts,
                        "lost": round(lost, 3),
                        "now": _drawn_at(values, counts),
                    }
                    for calls, counts, lost in made
                ],
            }
        )
    return out


def _drawn_at(values: np.ndarray, counts: Sequence[int]) -> list[float]:
    """(n,): cross-entropy of each token, given those that are known when its call begins."""
    begin = np.repeat(np.cumsum(counts) - counts, counts)
    return np.round(
        values[begin, np.arange(len(values))] if values.ndim == 2 else values[begin], 5
    ).tolist()


def evaluations(workdir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(file, result) of each JSON of `vqd evaluate` in the workdir or in a folder inside it."""
    found = []
    for path in sorted([*workdir.glob("*.json"), *workdir.glob("*/*.json")]):
        try:
            result = json.loads(path.read_text())
        except ValueError:
            continue
        if isinstance(result, dict) and all(
            isinstance(result.get(name), dict) for name in ("protocol", "provenance")
        ):
            found.append((path, result))
    return found


def stored_config(workdir: Path) -> dict[str, Any] | None:
    """The config that the newest stage was trained with."""
    for stage in reversed(ORDER):
        checkpoints = Checkpoints(stage_folder(workdir, stage), read_only=True)
        if (steps := checkpoints.steps()) and checkpoints.has("config", steps[-1]):
            return checkpoints.restore("config", step=steps[-1])
    return None


def settings(config: dict[str, Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    """Section → (key, value, default) of a stored config; default is None for a key that this
    version does not know.
    """
    plain = lambda value: json.loads(json.dumps(value))
    known, out = plain(defaults().to_dict()), {}
    for name, value in config.items():
        inside, section = (value, name) if isinstance(value, dict) else ({name: value}, "")
        usual = known.get(name, {}) if section else known
        out.setdefault(section, []).extend(
            (key, plain(x), usual.get(key)) for key, x in inside.items()
        )
    return out


def machines(workdir: Path) -> dict[str, dict[str, Any]]:
    """Stage → where it was last started."""
    files = {folder.name: folder / MACHINE for folder in stages(workdir)}
    try:
        return {
            stage: json.loads(file.read_text()) for stage, file in files.items() if file.is_file()
        }
    except ValueError as error:
        raise UserError(f"a {MACHINE} in {workdir} is damaged ({error}): delete it") from error


def rows(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage → the rows of its log."""
    return {folder.name: found for folder in stages(workdir) if (found := read_metrics(folder))}


def times(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What took how long in a stage, from the rows of its log, as text."""
    of = lambda name: [
        row[PREFIX + name] for row in rows if np.isfinite(row.get(PREFIX + name, np.nan))
    ]
    seconds = rows[-1]["time"] - rows[0]["time"]
    day = lambda row: datetime.fromtimestamp(row["time"], UTC).strftime("%Y-%m-%d %H:%M")
    out = {
        "began": f"{day(rows[0])} UTC",
        "last entry of the log": f"{day(rows[-1])} UTC",
        "time between them": duration(seconds),
        "steps": f"{rows[-1]['step']:,}",
    }
    shown = [
        ("examples", "images seen", max, "{:,.0f}"),
        ("examples_per_second", "images/s, median", np.median, "{:,.1f}"),
        ("step_time", "seconds per step, median", np.median, "{:.3g}"),
        ("input_wait", "share of time that waits for input", np.mean, "{:.1%}"),
        ("goodput", "goodput: share of the time in steps that count", lambda x: x[-1], "{:.1%}"),
        ("flops_per_second", "GFLOP/s, median", lambda x: np.median(x) / 1e9, "{:,.3g}"),
        ("mfu", "share of the chips' peak, median", np.median, "{:.1%}"),
        ("device_memory_peak", "GB of device memory at most", lambda x: max(x) / 1e9, "{:.2f}"),
        ("host_memory", "GB of the process's memory at most", lambda x: max(x) / 1e9, "{:.2f}"),
    ]
    return out | {
        title: form.format(of_all(of(name))) for name, title, of_all, form in shown if of(name)
    }


def duration(seconds: float | int) -> str:
    """83 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes < 48 * 60
        else f"{minutes // 1440} d {minutes % 1440 // 60} h"
    )


def _thin(values: np.ndarray) -> list[Any]:
    return _spread(values.tolist(), POINTS)


def _spread(items: list[Any], count: int) -> list[Any]:
    return [items[i] for i in spread(list(range(len(items))), count)]
