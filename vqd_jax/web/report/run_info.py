"""The config, the machine, and times and speeds of a run, from the files of its workdir."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.config.compatibility import without_local_paths
from vqd_jax.config.defaults import defaults
from vqd_jax.core.checksums import unsealed
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import read_regular
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import PREFIX, read_metrics
from vqd_jax.runtime.workdir import STAGES, Workdir

MAX_MACHINE = 2**20  # bytes of a machine.json


def stored_config(workdir: Path) -> dict[str, Any] | None:
    """The config of the last trained stage."""
    for stage in reversed(STAGES):
        if found := _last_config(workdir, stage):
            return without_local_paths(found[1])
    return None


def _last_config(workdir: Path, stage: str) -> tuple[int, dict[str, Any]] | None:
    """(step, config) of the last checkpoint of a stage."""
    checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
    if (steps := checkpoints.steps()) and checkpoints.has("config", steps[-1]):
        return steps[-1], checkpoints.restore("config", step=steps[-1])
    return None


def settings(config: dict[str, Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    """Section -> (key, value, default) of a stored config. Keys outside sections are in "";
    the default of a key that this version does not know is None.
    """
    plain = lambda value: json.loads(json.dumps(value))
    known, out = plain(defaults().to_dict()), {}
    for name, value in config.items():
        section = name if isinstance(value, dict) else ""
        values = value if section else {name: value}
        default = known.get(name, {}) if section else known
        out.setdefault(section, []).extend(
            (key, plain(x), default.get(key)) for key, x in values.items()
        )
    return out


def machines(workdir: Path) -> dict[str, dict[str, Any]]:
    """Stage -> the machine on which it was last started."""
    files = {folder.name: folder.machine for folder in Workdir(workdir).logged_stages()}
    try:
        return {
            stage: unsealed(read_regular(file, MAX_MACHINE).decode())
            for stage, file in files.items()
            if file.exists()
        }
    except (ValueError, RecursionError) as error:
        raise UserError(f"a machine.json in {workdir} is damaged ({error}): delete it") from error


def rows(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage -> the rows of its log."""
    found = {f.name: read_metrics(f.path) for f in Workdir(workdir).logged_stages()}
    return {stage: rows for stage, rows in found.items() if rows}


def log_ends_early(workdir: Path, stage: str, rows: list[dict[str, Any]]) -> int | None:
    """The step of the stage's last checkpoint, if its log lacks lines from before it."""
    try:
        found = _last_config(workdir, stage)
    except UserError:  # damaged, as the section of the config says
        return None
    if found is None:
        return None
    step, config = found
    train = config.get(f"{stage}_train", {})
    every = max(train.get("log_every", 0) // train.get("batch_size", 1), 1)
    return step if rows[-1]["step"] // every < step // every else None


def times(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Times and speeds of a stage from the rows of its log, as text."""
    of = lambda name: [
        row[PREFIX + name] for row in rows if np.isfinite(row.get(PREFIX + name, np.nan))
    ]
    seconds = rows[-1]["time"] - rows[0]["time"]
    day = lambda row: datetime.fromtimestamp(row["time"], UTC).strftime("%Y-%m-%d %H:%M")
    out = {
        "start": f"{day(rows[0])} UTC",
        "last log entry": f"{day(rows[-1])} UTC",
        "duration": duration(seconds),
        "steps": f"{rows[-1]['step']:,}",
    }
    shown = [
        ("examples", "images seen", max, "{:,.0f}"),
        ("examples_per_second", "images per second, median", np.median, "{:,.1f}"),
        ("step_time", "seconds per step, median", np.median, "{:.3g}"),
        ("input_wait", "time spent waiting for input", np.mean, "{:.1%}"),
        ("goodput", "goodput: time spent in steps that were kept", lambda x: x[-1], "{:.1%}"),
        ("flops_per_second", "GFLOP/s, median", lambda x: np.median(x) / 1e9, "{:,.3g}"),
        ("mfu", "model FLOP utilization (MFU), median", np.median, "{:.1%}"),
        ("device_memory_peak", "peak device memory, GB", lambda x: max(x) / 1e9, "{:.2f}"),
        ("host_memory", "peak process memory, GB", lambda x: max(x) / 1e9, "{:.2f}"),
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
