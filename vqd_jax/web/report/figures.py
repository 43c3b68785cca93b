"""The sections of the report with figures, which report.js draws. Each function takes a workdir and
returns HTML, or "" if there is nothing to show, and adds the numbers to `data`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.web.report import contents
from vqd_jax.web.report.markup import note, stage_title, text

KINDS = {
    "reconstructions": "held-out images, each above its reconstruction",
    "samples": "samples for fixed prompts and noise",
}


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
            (f"<h3>{text(stage_title(found['stage']))}</h3>" if found["stage"] else "")
            + f'<div class="panels">{panels[False]}</div>'
        )
        if panels[True]:
            out.append(
                "<details><summary>Speed and memory</summary><div "
                f'class="panels">{panels[True]}</div></details>'
            )
    return "".join(out)


def _panel(index: str, panel: Mapping[str, Any], stage: str) -> str:
    """A figure that report.js fills; `index` is "stage,panel" in its data."""
    at = lambda line, i: f"{line['values'][i]:.4g} at step {line['steps'][i]:,}"
    ends = [
        f"{line['name'] or panel['name']} from {at(line, 0)} to {at(line, -1)}"
        for line in panel["lines"]
    ]
    thinned = max(line["of"] / len(line["values"]) for line in panel["lines"])
    note = f" (1 of {thinned:.0f} points is shown)" if thinned > 1 else ""
    return _plot(
        f'data-panel="{index}"',
        panel["name"].replace("_", " "),
        f"{stage_title(stage)}, {panel['name']}: {'; '.join(ends)}{note}",
        '<label><input type="checkbox" class="log"> log scale</label>',
    )


def _plot(attribute: str, title: str, description: str, control: str) -> str:
    return (
        f'<figure {attribute}><figcaption><span class="title">{text(title)}</span> '
        f"{control}</figcaption>"
        f'<div class="plot" tabindex="0" role="img" aria-label="{text(description)}"></div>'
        '<p class="readout" aria-live="polite"></p></figure>'
    )


def images(workdir: Path, data: dict[str, Any]) -> str:
    out, faults = [], []
    data["images"] = contents.images(workdir, faults)
    for i, found in enumerate(data["images"]):
        title = f"{stage_title(found['stage'])}: {KINDS.get(found['kind'], found['kind'])}"
        steps = found["steps"]
        alt = f"{title}, after step {steps[-1]:,}"
        slider = _slider(steps, title) or f"<p>Step {steps[-1]:,}</p>"
        out.append(
            f'<figure data-images="{i}" data-title="{text(title)}"><figcaption><span '
            f'class="title">{text(title)}</span>'
            f'</figcaption>{slider}<div class="wide"><img src="{found["images"][-1]}" '
            f'alt="{text(alt)}"></div></figure>'
        )
    shown = {uri for found in data["images"] for uri in found["images"]}
    for stage, uri in contents.final_images(workdir, faults):
        if uri in shown:  # a series ends with them
            continue
        title = f"{stage_title(stage)}: final samples"
        out.append(
            f'<figure><figcaption><span class="title">{text(title)}</span></figcaption>'
            f'<div class="wide"><img src="{uri}" alt="{text(title)}"></div></figure>'
        )
    return "".join([*out, *map(note, faults)])


def _slider(steps: Sequence[int], title: str) -> str:
    """A slider over the steps, at the last one; "" if there is only one."""
    last = len(steps) - 1
    return (
        f'<label>Step <output>{steps[-1]:,}</output> <input type="range" min="0" max="{last}" '
        f'value="{last}" '
        f'aria-label="{text(title)}: step"></label>'
        if last
        else ""
    )


def codes(workdir: Path, data: dict[str, Any]) -> str:
    if not (found := contents.codes(workdir)):
        return ""
    data["codes"] = found
    steps, counts = found["steps"], np.array(found["counts"][-1])
    summary = (
        f"{len(counts):,} codes, {np.mean(counts > 0):.1%} of them in use on held-out images after "
        f"step {steps[-1]:,}; the most frequent one makes up "
        f"{counts.max() / max(counts.sum(), 1):.1%} of all tokens"
    )
    return (
        '<figure id="codes"><p '
        f'class="summary">{text(summary)}.</p>{_slider(steps, "Codebook use")}'
        f'<canvas tabindex="0" role="img" aria-label="{text(summary)}"></canvas>'
        '<p class="legend"><span class="unused"></span> never used <span class="ramp"></span> '
        "rare to frequent, log scale</p>"
        '<p class="readout" aria-live="polite"></p></figure>'
    )


def plans(workdir: Path, data: dict[str, Any]) -> str:
    data["plans"], out = contents.plans(workdir), []
    for i, found in enumerate(data["plans"]):
        description = (
            f"{found['order']} order: cross-entropy of a token, {found['curve'][0]:.3g} nats with "
            f"no other token known, {found['curve'][-1]:.3g} nats with all others known"
        )
        options = "".join(
            f'<option value="{j}">{plan["calls"]} steps</option>'
            for j, plan in enumerate(found["plans"])
        )
        control = (
            f'<label>Plan with <select class="steps">{options}</select></label>' if options else ""
        )
        out.append(_plot(f'data-plan="{i}"', f"{found['order']} order", description, control))
    explanation = (
        "<p>The curve shows how uncertain the model is about a token: its cross-entropy, given the "
        "number of tokens that are known. A plan chooses how many tokens to draw in each of a few "
        "steps (network calls). Tokens of one step are drawn independently; the shaded area is the "
        "information lost by that, the KL gap in nats.</p>"
    )
    return f'{explanation}<div class="panels">{"".join(out)}</div>' if out else ""
