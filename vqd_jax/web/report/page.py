"""The report of a workdir as one HTML file that needs nothing else: it opens from a disk, without a
network.

The same files give the same bytes. Numbers and pictures lie in the page as JSON; report.js draws
them.
"""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.web.report import sections

NAME = "report.html"
# nothing from elsewhere, ever
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write(workdir: Path, out: Path) -> None:
    """The report of `workdir` as the file `out`. UserError if there is nothing to report, or it
    cannot be written.
    """
    _put(out, page(workdir))


def refresh(workdir: Path) -> None:
    """`write` into the workdir beside a training, which goes on whatever is odd there, but not with
    a full disk.
    """
    try:
        content = page(workdir)
    except Exception as error:
        print(f"{workdir / NAME} stays as it is: {type(error).__name__}: {error}", flush=True)
        return
    _put(workdir / NAME, content)


def _put(out: Path, content: str) -> None:
    with atomic_write(out, "the report") as part:
        part.write_text(content, encoding="utf-8")


def page(workdir: Path) -> str:
    """The report as HTML."""
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}: train one with python -m vqd_jax.main")
    data: dict[str, Any] = {}
    parts = {
        "Curves": sections.curves,
        "Pictures": sections.pictures,
        "Codebook": sections.codes,
        "Information": sections.plans,
        "Evaluations": sections.evaluations,
        "Time and hardware": sections.times,
        "Config": sections.config,
    }
    made = {title: body for title, part in parts.items() if (body := _tried(part, workdir, data))}
    if not made:
        raise UserError(
            f"there is nothing to report in {workdir}: it has no metrics, no pictures and no "
            "config of a run"
        )
    name, style, script = workdir.absolute().name, _file("report.css"), _file("report.js")
    anchor = lambda title: title.lower().replace(" ", "-")
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title in made)
    body = "".join(
        f'<section id="{anchor(title)}"><h2>{title}</h2>{body}</section>'
        for title, body in made.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{sections.text(name)} – report</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{sections.text(name)}</h1>{_tried(sections.state, workdir, data)}<nav aria-label="Sections">{links}</nav></header>
<noscript><p class="note">Curves and sliders need JavaScript, which is switched off here.</p></noscript>
<main>{body}</main>
<script type="application/json" id="data">{_json(data)}</script>
<script>
{script}</script>
</body>
</html>
"""


def _tried(part: Callable[[Path, dict[str, Any]], str], workdir: Path, data: dict[str, Any]) -> str:
    """A section, or the sentence why a damaged file keeps it from being shown."""
    try:
        return part(workdir, data)
    except UserError as error:
        return f'<p class="note">{sections.text(error)}</p>'


def _json(data: Any) -> str:
    """JSON that ends no script element, whatever its texts say."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (resources.files("vqd_jax.web.report") / "static" / name).read_text(encoding="utf-8")
