"""The sections of the report as HTML, each of a workdir and the data that report.js draws, to which
it adds; "" without any.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.eval import page
from vqd_jax.web.report import contents

TITLES = {"vqvae": "Codec", "diffusion": "Denoiser", "autoregressive": "Autoregressive twin"}
KINDS = {
    "reconstructions": "Reconstructions of held-out pictures: originals, each above what the "
    "codec makes of it",
    "samples": "Samples for the same prompts and the same noise",
}


def state(workdir: Path, data: dict[str, Any]) -> str:
    """How far the run is."""
    rows = contents.rows(workdir)
    last = max((found[-1]["time"] for found in rows.values()), default=None)
    stages = [f"{_stage(stage)}: step {found[-1]['step']:,}" for stage, found in rows.items()]
    return (
        f"<p>{text(' · '.join([*stages, f'{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC']))}</p>"
        if last
        else ""
    )


def curves(workdir: Path, data: dict[str, Any]) -> str:
    data["curves"] = contents.curves(workdir)
    if not data["curves"]:
        return ""
    control = (
        '<p class="control"><label>Smoothing <input type="range" id="smoothing" min="0" max="100" '
        'value="10"></label> '
        '<output for="smoothing"></output></p>'
    )
    out = [control]
    for i, found in enumerate(data["curves"]):
        panels = {
            timing: "".join(
                _panel(f"{i},{j}", panel, found["stage"])
                for j, panel in enumerate(found["panels"])
                if panel["timing"] is timing
            )
            for timing in (False, True)
        }
        out.append(
            (f"<h3>{text(_stage(found['stage']))}</h3>" if found["stage"] else "")
            + f'<div class="panels">{panels[False]}</div>'
        )
        if panels[True]:
            out.append(
                "<details><summary>Speed and memory</summary><div "
                f'class="panels">{panels[True]}</div></details>'
            )
    return "".join(out)


def _panel(place: str, panel: Mapping[str, Any], stage: str) -> str:
    """A figure that report.js fills."""
    at = lambda line, i: f"{line['values'][i]:.4g} at step {line['steps'][i]:,}"
    ends = [
        f"{line['name'] or panel['name']} from {at(line, 0)} to {at(line, -1)}"
        for line in panel["lines"]
    ]
    thinned = max(line["of"] / len(line["values"]) for line in panel["lines"])
    note = f" (one of {thinned:.0f} points is shown)" if thinned > 1 else ""
    return _plot(
        f'data-panel="{place}"',
        panel["name"].replace("_", " "),
        f"{_stage(stage)}, {panel['name']}: {'; '.join(ends)}{note}",
        '<label><input type="checkbox" class="log"> logarithmic</label>',
    )


def _plot(attribute: str, title: str, description: str, control: str) -> str:
    return (
        f'<figure {attribute}><figcaption><span class="title">{text(title)}</span> '
        f"{control}</figcaption>"
        f'<div class="plot" tabindex="0" role="img" aria-label="{text(description)}"></div>'
        '<p class="readout" aria-live="polite"></p></figure>'
    )


def pictures(workdir: Path, data: dict[str, Any]) -> str:
    data["pictures"], out = contents.pictures(workdir), []
    for i, found in enumerate(data["pictures"]):
        title = f"{_stage(found['stage'])}: {KINDS.get(found['kind'], found['kind'])}"
        steps, alt = found["steps"], f"{title}, after step {found['steps'][-1]:,}"
        slider = _slider(steps, title) or f"<p>Step {steps[-1]:,}</p>"
        out.append(
            f'<figure data-pictures="{i}" data-title="{text(title)}"><figcaption><span '
            f'class="title">{text(title)}</span>'
            f'</figcaption>{slider}<div class="wide"><img src="{found["images"][-1]}" '
            f'alt="{text(alt)}"></div></figure>'
        )
    for stage, uri in contents.last_pictures(workdir):
        title = f"{_stage(stage)}: the pictures at the end"
        out.append(
            f'<figure><figcaption><span class="title">{text(title)}</span></figcaption>'
            f'<div class="wide"><img src="{uri}" alt="{text(title)}"></div></figure>'
        )
    return "".join(out)


def _slider(steps: Sequence[int], of: str) -> str:
    """Which step is shown, the last one at first; "" if there is only one."""
    last = len(steps) - 1
    return (
        f'<label>Step <output>{steps[-1]:,}</output> <input type="range" min="0" max="{last}" '
        f'value="{last}" '
        f'aria-label="{text(of)}: which step"></label>'
        if last
        else ""
    )


def codes(workdir: Path, data: dict[str, Any]) -> str:
    if not (found := contents.codes(workdir)):
        return ""
    data["codes"], steps, counts = found, found["steps"], np.array(found["counts"][-1])
    said = (
        f"{len(counts):,} codes, of which {np.mean(counts > 0):.1%} were chosen for the held-out "
        f"pictures after step {steps[-1]:,}; "
        f"the most frequent one is {counts.max() / max(counts.sum(), 1):.1%} of all tokens"
    )
    return (
        '<figure id="codes"><p '
        f'class="summary">{text(said)}.</p>{_slider(steps, "The use of the codes")}'
        f'<canvas tabindex="0" role="img" aria-label="{text(said)}"></canvas>'
        '<p class="legend"><span class="unused"></span> never chosen <span class="ramp"></span> '
        "seldom to often, logarithmic</p>"
        '<p class="readout" aria-live="polite"></p></figure>'
    )


def plans(workdir: Path, data: dict[str, Any]) -> str:
    data["plans"], out = contents.plans(workdir), []
    for i, found in enumerate(data["plans"]):
        said = (
            f"Order {found['order']}: a token is uncertain by {found['curve'][0]:.3g} nats when "
            "none is known, and by "
            f"{found['curve'][-1]:.3g} when all others are"
        )
        choice = "".join(
            f'<option value="{j}">{plan["calls"]} calls</option>'
            for j, plan in enumerate(found["plans"])
        )
        control = (
            f'<label>Plan for <select class="calls">{choice}</select></label>' if choice else ""
        )
        out.append(_plot(f'data-plan="{i}"', f"{found['order']} order", said, control))
    explained = (
        "<p>How uncertain the model is about a token when some of the others are known, and where "
        "a plan with few network calls "
        "spends them: each step draws the tokens up to the next one at once, as if they did not "
        "depend on each other, which loses "
        "what lies between the steps and the curve.</p>"
    )
    return f'{explained}<div class="panels">{"".join(out)}</div>' if out else ""


def evaluations(workdir: Path, data: dict[str, Any]) -> str:
    out = []
    for path, result in contents.evaluations(workdir):
        try:
            out.append(_evaluation(path, path.relative_to(workdir), result))
        except (AttributeError, KeyError, TypeError, ValueError):
            out.append(
                f'<p class="note">{text(path.name)} is not a result of vqd evaluate as it writes '
                "them now.</p>"
            )
    return "".join(out)


def _evaluation(path: Path, name: Path, result: dict[str, Any]) -> str:
    parts = [
        part for part, found in result.items() if isinstance(found, dict) and "generated" in found
    ]
    measured = [*page.measured(result, parts)]
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
    bound = [
        (part.replace("_", " "), f"{b['nats_per_token']:.3f}", f"{b['bits_per_token']:.3f}")
        for part, b in result.get("bound", {}).items()
    ]
    codec = result.get("reconstruction", {})
    steps = ", ".join(
        f"{_stage(stage)} {step:,}" for stage, step in result["provenance"].get("steps", {}).items()
    )
    used = ", ".join(f"{key} {value}" for key, value in result.get("sampling", {}).items())
    said = "; ".join(
        filter(
            None,
            (f"protocol {result['protocol'].get('name', '')}", steps and f"steps: {steps}", used),
        )
    )
    out = [
        f"<h3>{text(name)}</h3><p>{text(said)}</p>",
        _table(("pictures", *columns), rows) if rows else "",
        _table(("bound", "nats per token", "bits per token"), bound) if bound else "",
        _table(
            ("reconstruction", *codec),
            [("held-out pictures", *(f"{value:.4g}" for value in codec.values()))],
        )
        if codec
        else "",
    ]
    for file, what in (
        (
            path.with_suffix(".png"),
            "The best, the worst and random pictures, each above the nearest real one",
        ),
        (path.with_name(f"{path.stem}-plots.png"), "Plots of the evaluation"),
    ):
        if uri := contents.picture(file):
            out.append(
                f'<details><summary>{what}</summary><div class="wide"><img src="{uri}" '
                f'alt="{what}"></div></details>'
            )
    return "".join(out)


def times(workdir: Path, data: dict[str, Any]) -> str:
    rows = contents.rows(workdir)
    columns = {stage: contents.times(found) for stage, found in rows.items()}
    for stage, machine in contents.machines(workdir).items():
        packages = ", ".join(
            f"{name} {version}" for name, version in machine.pop("versions", {}).items()
        )
        columns[stage] |= {
            "device": f"{machine.pop('devices', 1)} × {machine.pop('device', '')}",
            "GFLOP per step": f"{machine.pop('flops_per_step', 0) / 1e9:,.1f}",
            **{name: str(value) for name, value in machine.items() if value},
            "packages": packages,
        }
    names = [*dict.fromkeys(name for column in columns.values() for name in column)]
    left_out = [
        f"{_stage(stage)}: {row['fault/batches']:.0f} batches, from batch "
        f"{row['fault/first_batch']:,.0f} on, were left out, since "
        f"numbers were bad in step {row['fault/step']:,.0f}"
        for stage, found in rows.items()
        for row in found
        if "fault/step" in row
    ]
    table = _table(
        ("", *map(_stage, columns)),
        [(name, *(column.get(name, "") for column in columns.values())) for name in names],
    )
    return (table if names else "") + "".join(
        f'<p class="note">{text(line)}.</p>' for line in left_out
    )


def config(workdir: Path, data: dict[str, Any]) -> str:
    if not (config := contents.stored_config(workdir)):
        return ""
    sections = contents.settings(config)
    name = lambda section, key: f"{section}.{key}" if section else key
    changed = [
        (name(section, key), _value(value), _value(usual))
        for section, keys in sections.items()
        for key, value, usual in keys
        if value != usual
    ]
    everything = "".join(
        f"<details><summary>{text(section or 'the whole run')}</summary>"
        f"{_table(('key', 'value'), [(key, _value(value)) for key, value, _ in keys])}</details>"
        for section, keys in sections.items()
    )
    first = (
        "<p>What differs from the defaults:</p>" + _table(("key", "value", "default"), changed)
        if changed
        else ""
    )
    return f"{first}<details><summary>All settings</summary>{everything}</details>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in row)
    body = "".join(
        f'<tr><th scope="row">{text(title)}</th>{cells("td", rest)}</tr>' for title, *rest in rows
    )
    return (
        '<div class="wide" '
        f'tabindex="0"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _stage(stage: str) -> str:
    return f"{TITLES[stage]} ({stage})" if stage in TITLES else stage


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def text(value: object) -> str:
    """As text in HTML, whatever it says."""
    return html.escape(str(value))
