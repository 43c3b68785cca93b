"""Pages of the site that are made from the code and from files outside docs/, and links to such
files.

MkDocs calls the functions `on_...`, as mkdocs.yml says.
"""

import ast
import html
import importlib
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from absl import flags

from vqd_jax.__main__ import COMMANDS
from vqd_jax.cli import runner
from vqd_jax.config.defaults import defaults
from vqd_jax.config.keys import key_rows

ROOT = Path(__file__).resolve().parents[1]
# Pages with the text of a file outside docs/
INCLUDED = {
    "index.md": "README.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/tests.md": "tests/README.md",
    "project/security.md": "SECURITY.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/model_card.md": "pretrained/emoji64/README.md",
}
# Files that these pages are made from; links to them lead there
REFERENCE = {
    "configs": "reference/configs.md",
    "vqd_jax/cli": "reference/commands.md",
    "vqd_jax/config/defaults.py": "reference/keys.md",
    "vqd_jax/inference/pipeline.py": "reference/python.md",
}
# Images outside docs/ that pages show, under the same path on the site
IMAGES = ("results/*.png", "pretrained/*/*.png")
CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]+`|!?\[([^\]]*)\]\(([^)\s]+)\)", re.M | re.S)
PUBLIC = {  # in vqd_jax: their members on the page
    "load": "",
    "TextToImage": "__call__ inpaint vary extend watch encode decode",
    "samplers.base.Sampler": "plan start noised",
    "samplers.base.Phase": "",
    "core.errors.UserError": "",
}


def pages() -> dict[str, str]:
    """The Markdown of each page that is not a file in docs/, by its path there."""
    return {uri: (ROOT / path).read_text("utf-8") for uri, path in INCLUDED.items()} | {
        "reference/commands.md": commands(),
        "reference/keys.md": keys(),
        "reference/configs.md": configs(),
        "reference/python.md": python(),
    }


def commands() -> str:
    """The help of every command."""
    rows = [f"| [`vqd {name}`](#vqd-{name}) | {text} |" for name, text in COMMANDS.items()]
    out = [
        "# Commands",
        "`vqd COMMAND --help` prints these texts; `python -m vqd_jax COMMAND` is the same as `vqd "
        "COMMAND`.",
        "\n".join(["| command | what it does |", "|---|---|", *rows]),
    ]
    for name in COMMANDS:
        command = importlib.import_module(f"vqd_jax.cli.{name}")
        options = flags.FlagValues()
        command.define_flags(options)
        out += [f"## vqd {name}", f"```text\n{runner.usage(name, command, options)}\n```"]
    return "\n\n".join(out)


def keys() -> str:
    """Every config key with its default and what it is, by section."""
    out = [
        "# Config keys",
        "All hyperparameters and settings of a training, with their defaults in "
        "`vqd_jax/config/defaults.py`, as the command line takes them: "
        "`--config.denoiser.layers=8`. `vqd train --config=NAME --help` prints the values of a "
        "config, and [Configs](configs.md) what each is for. Lengths and intervals are in training "
        "examples, not steps. A key without a text is explained in the section of the same kind "
        "above it.",
        "## General",
    ]
    head = "| key | default | |\n|---|---|---|"
    out.append(head)
    for left, text in key_rows(defaults()):
        if left.startswith("--"):
            key, _, value = left.removeprefix("--config.").partition("=")
            out[-1] += f"\n| {_code(key)} | {_code(value)} | {_cell(text)} |"
        else:
            out += [f"## {left.removesuffix(':')}", *[_cell(text)] * bool(text), head]
    return "\n\n".join(out)


def configs() -> str:
    """The header of every config."""
    out = [
        "# Configs",
        "`--config=NAME` takes one of these, `--config=NAME:VARIANT` a variant of it, and "
        "`--config=FILE.py` a file of your own. [Config keys](keys.md) lists what they set.",
    ]
    for path in sorted((ROOT / "configs").glob("*.py")):
        header = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        out += [f"## {path.stem}", f"```text\n{header}\n```"]
    return "\n\n".join(out)


def python() -> str:
    """The Python interface, which mkdocstrings reads from the code."""
    out = [
        "# Python",
        "`vqd_jax.load` opens a model, and a model is a function from prompts to images; the "
        "[tour](../tour.md) and [How to edit](../howto/edit.md#in-python) have examples.",
    ]
    for name, members in PUBLIC.items():
        chosen = "".join(f"\n        - {member}" for member in members.split()) or " false"
        out.append(
            f"::: vqd_jax.{name}\n    options:\n      inherited_members: true\n"
            f"      members:{chosen}"
        )
    return "\n\n".join(out)


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>" if text else ""


def _cell(text: str) -> str:
    """Plain text in the cell of a table."""
    return re.sub(r"[|*_`\\]", r"\\\g<0>", html.escape(text, quote=False))


def relinked(text: str, uri: str, repository: str = "") -> str:
    """The Markdown of a page, whose links fit a checkout, with links that fit the site: to pages
    and images by their paths there, to other files at `repository`, or plain text if that is empty.
    Links that lead nowhere stay as they are, for MkDocs to report.
    """
    source = INCLUDED.get(uri, f"docs/{uri}")

    def one(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if target is None or urlsplit(target).scheme or target.startswith("#"):
            return match[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page, _, section = _page_of(path).partition("#")
        if page:
            to = posixpath.relpath(page, posixpath.dirname(uri) or ".")
            return f"{match[0].partition('](')[0]}]({to}#{anchor or section})".replace("#)", ")")
        if not (ROOT / path).exists():
            return match[0]
        return f"[{label}]({repository}/blob/HEAD/{path}{hash_}{anchor})" if repository else label

    return CODE_OR_LINK.sub(one, text)


def _page_of(path: str) -> str:
    """Where the site shows a file of the checkout; "" if it does not."""
    parts = Path(path)
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if any(parts.match(pattern) for pattern in IMAGES):
        return path
    if parts.match("configs/*.py"):
        return f"reference/configs.md#{parts.stem}"
    if parts.match("vqd_jax/cli/*.py") and parts.stem in COMMANDS:
        return f"reference/commands.md#vqd-{parts.stem}"
    return {file: page for page, file in INCLUDED.items()}.get(path) or REFERENCE.get(path, "")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    for pattern in IMAGES:
        for path in ROOT.glob(pattern):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=os.fspath(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    # Python-Markdown wants an empty line between a comment and a table
    markdown = re.sub(r"(^<!-- .* -->$)", r"\n\1\n", markdown, flags=re.M)
    return relinked(markdown, page.file.src_uri, (config.repo_url or "").rstrip("/"))


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    """Entries /PAGE.md#ANCHOR of the navigation lead to a part of a page."""
    for link in _links(nav.items):
        uri, _, anchor = link.url.removeprefix("/").partition("#")
        link.url = f"{files.get_file_from_path(uri).url}#{anchor}"
    return nav


def _links(items: Any) -> Iterator[Any]:
    for item in items:
        if item.is_link and item.url.startswith("/"):
            yield item
        yield from _links(item.children or ())
