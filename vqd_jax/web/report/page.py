"""The report of a workdir as one self-contained HTML file, which opens without a network.

The same files give the same bytes. Numbers and images are in the page as JSON; report.js draws
them.
"""

import json
import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.web.report import figures, sections
from vqd_jax.web.report.markup import note, text

# the page loads nothing
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
FIGURES = {
    "Training curves": figures.curves,
    "Images": figures.images,
    "Codebook use": figures.codes,
    "Uncertainty and sampling plans": figures.plans,
}
TABLES = {
    "Evaluations": sections.evaluations,
    "Time and hardware": sections.times,
    "Configuration": sections.config,
}


def write(workdir: str | Path, out: Path) -> None:
    """Writes the report of `workdir` to `out`. UserError if there is nothing to report or the file
    cannot be written.
    """
    _put(out, page(workdir))


def refresh(workdir: str | Path) -> None:
    """Writes the report into the workdir during training. Damaged files only print a message; a
    report that cannot be written is a UserError.
    """
    out = Workdir(workdir).report
    try:
        content = page(workdir)
    except Exception as error:
        print(f"{out} is not updated: {type(error).__name__}: {error}", flush=True)
        return
    _put(out, content)


def _put(out: Path, content: str) -> None:
    with atomic_write(out, "the report") as part:
        part.write_text(content, encoding="utf-8")


def page(workdir: str | Path) -> str:
    """The report as HTML."""
    workdir = as_path(workdir)
    if not Workdir(workdir).path.is_dir():
        raise UserError(f"there is no workdir {workdir}: train one with python -m vqd_jax.main")
    data: dict[str, Any] = {}
    bodies = {title: _html(section, workdir, data) for title, section in FIGURES.items()}
    bodies |= {title: _html(section, workdir) for title, section in TABLES.items()}
    bodies = {title: body for title, body in bodies.items() if body}
    if not bodies:
        raise UserError(
            f"there is nothing to report in {workdir}: it has no metrics, images or config of a run"
        )
    folder = Workdir(workdir).path
    name = text(folder.absolute().name)
    state = _html(sections.state, workdir)
    style = _file("vqd_jax.web", "shared.css") + _file("vqd_jax.web.report", "report.css")
    script = _file("vqd_jax.web.report", "report.js")
    anchor = lambda title: title.lower().replace(" ", "-")
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title in bodies)
    body = "".join(
        f'<section id="{anchor(title)}"><h2>{title}</h2>{body}</section>'
        for title, body in bodies.items()
    )
    for place in (folder.absolute(), folder):
        if len(place.parts) > 1:  # the page is given away: no path of this machine
            state, body = (html.replace(text(place), name) for html in (state, body))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name} – report</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{name}</h1>{state}<nav aria-label="Sections">{links}</nav></header>
<noscript><p class="note">Curves and sliders need JavaScript.</p></noscript>
<main>{body}</main>
<script type="application/json" id="data">{_json(data)}</script>
<script>
{script}</script>
</body>
</html>
"""


def _html(section: Callable[..., str], *arguments: Any) -> str:
    """The HTML of a section, or a note about the damaged file that prevents it."""
    try:
        return section(*arguments)
    except UserError as error:
        return note(error)
    except Exception as error:  # of files that hold something else than ours do
        logging.warning("a section of the report is left out", exc_info=True)
        return note(f"This section cannot be shown ({type(error).__name__}: {error}).")


def _json(data: Any) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _file(package: str, name: str) -> str:
    return (resources.files(package) / "static" / name).read_text(encoding="utf-8")
