"""The sections of the report with text and tables. Each function takes a workdir and returns HTML,
or "" if there is nothing to show.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vqd_jax.eval import page
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.web.report import contents, run_info
from vqd_jax.web.report.markup import note, stage_title, table, text


def state(workdir: Path) -> str:
    """The last step of each stage, and when it was logged."""
    rows = run_info.rows(workdir)
    if not rows:
        return ""
    last = datetime.fromtimestamp(max(found[-1]["time"] for found in rows.values()), UTC)
    stages = [f"{stage_title(stage)}: step {found[-1]['step']:,}" for stage, found in rows.items()]
    return f"<p>{text(' · '.join([*stages, f'{last:%Y-%m-%d %H:%M} UTC']))}</p>"


def evaluations(workdir: Path) -> str:
    out, faults = [], []
    for path, result in contents.evaluations(workdir, faults):
        try:
            out.append(_evaluation(path, path.relative_to(Workdir(workdir).path), result))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            out.append(note(f"{path.name} is not a result of this version of vqd evaluate."))
    return "".join([*out, *map(note, faults)])


def _evaluation(path: Path, name: Path, result: dict[str, Any]) -> str:
    parts = [
        part for part, found in result.items() if isinstance(found, dict) and "generated" in found
    ]
    measured = [*page.result_rows(result, parts)]
    columns = [*dict.fromkeys(measure for _, _, shown in measured for measure in shown)]
    rows = [
        (
            f"{part.replace('_', ' ')} ({result[part]['images']:,})"
            if row == "generated"
            else "ceiling",
            *(shown.get(measure, "") for measure in columns),
        )
        for part, row, shown in measured
    ]
    units = ("nats_per_token", "bits_per_token")
    bound = [
        (part.replace("_", " "), *(page.shown(b, "{:.3f}")[unit] for unit in units))
        for part, b in result.get("bound", {}).items()
    ]
    codec = page.shown(result.get("reconstruction", {}), "{:.4g}")
    steps = ", ".join(
        f"{stage_title(stage)} {step:,}"
        for stage, step in result["provenance"].get("steps", {}).items()
    )
    used = ", ".join(f"{key} {value}" for key, value in result.get("sampling", {}).items())
    summary = "; ".join(
        filter(
            None,
            (f"protocol {result['protocol'].get('name', '')}", steps and f"steps: {steps}", used),
        )
    )
    out = [
        f"<h3>{text(name)}</h3><p>{text(summary)}</p>",
        table(("images", *columns), rows) if rows else "",
        table(("bound", "nats per token", "bits per token"), bound) if bound else "",
        table(
            ("reconstruction", *codec),
            [("held-out images", *codec.values())],
        )
        if codec
        else "",
    ]
    faults: list[str] = []
    for file, title in (
        (
            path.with_suffix(".png"),
            "Best, worst and random images, each above the nearest real image",
        ),
        (path.with_name(f"{path.stem}-plots.png"), "Plots"),
    ):
        if uri := contents.image(file, faults):
            out.append(
                f'<details><summary>{title}</summary><div class="wide"><img src="{uri}" '
                f'alt="{title}"></div></details>'
            )
    return "".join([*out, *map(note, faults)])


def times(workdir: Path) -> str:
    rows = run_info.rows(workdir)
    columns = {stage: run_info.times(found) for stage, found in rows.items()}
    for stage, machine in run_info.machines(workdir).items():
        packages = ", ".join(
            f"{name} {version}" for name, version in machine.pop("versions", {}).items()
        )
        columns[stage] = columns.get(stage, {}) | {
            "device": f"{machine.pop('devices', 1)} × {machine.pop('device', '')}",
            "GFLOP per step": f"{machine.pop('flops_per_step', 0) / 1e9:,.1f}",
            **{name: str(value) for name, value in machine.items() if value},
            "packages": packages,
        }
    names = [*dict.fromkeys(name for column in columns.values() for name in column)]
    notes = [
        f"{stage_title(stage)}: {row['fault/batches']:.0f} batches from batch "
        f"{row['fault/first_batch']:,.0f} on were skipped after a bad loss or gradient in step "
        f"{row['fault/step']:,.0f}"
        for stage, found in rows.items()
        for row in found
        if "fault/step" in row
    ]
    notes += [
        f"{stage_title(stage)} was started, and its log is empty"
        for stage in columns
        if stage not in rows
    ]
    notes += [
        f"{stage_title(stage)}: the log ends at step {found[-1]['step']:,}, before the last "
        f"checkpoint, of step {last:,}: lines are missing"
        for stage, found in rows.items()
        if (last := run_info.log_ends_early(workdir, stage, found))
    ]
    body = table(
        ("", *map(stage_title, columns)),
        [(name, *(column.get(name, "") for column in columns.values())) for name in names],
    )
    return (body if names else "") + "".join(note(f"{line}.") for line in notes)


def config(workdir: Path) -> str:
    if not (config := run_info.stored_config(workdir)):
        return ""
    sections = run_info.settings(config)
    name = lambda section, key: f"{section}.{key}" if section else key
    changed = [
        (name(section, key), _value(value), _value(usual))
        for section, keys in sections.items()
        for key, value, usual in keys
        if value != usual
    ]
    everything = "".join(
        f"<details><summary>{text(section or 'top level')}</summary>"
        f"{table(('key', 'value'), [(key, _value(value)) for key, value, _ in keys])}</details>"
        for section, keys in sections.items()
    )
    first = (
        "<p>Changed from the defaults:</p>" + table(("key", "value", "default"), changed)
        if changed
        else ""
    )
    return f"{first}<details><summary>All settings</summary>{everything}</details>"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
