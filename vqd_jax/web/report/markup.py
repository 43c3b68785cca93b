"""HTML shared by the sections of the report."""

import html
from collections.abc import Iterable

TITLES = {"vqvae": "Codec", "diffusion": "Denoiser", "autoregressive": "Autoregressive baseline"}


def stage_title(stage: str) -> str:
    """The name of a stage for readers."""
    return f"{TITLES[stage]} ({stage})" if stage in TITLES else stage


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the first cell of each row is its header."""
    cells = lambda tag, row: "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in row)
    body = "".join(
        f'<tr><th scope="row">{text(title)}</th>{cells("td", rest)}</tr>' for title, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def text(value: object) -> str:
    """Escapes a text for HTML."""
    return html.escape(str(value))


def note(message: object) -> str:
    """A paragraph about something that is missing or damaged."""
    return f'<p class="note">{text(message)}</p>'
