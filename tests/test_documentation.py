"""The documents and the site made of them (mkdocs.yml, docs/hooks.py), without MkDocs: navigation,
links as GitHub shows them, the generated reference.
"""

import functools
import importlib.util
import re

import pytest
import yaml

from helpers import ROOT
from vqd_jax.__main__ import COMMANDS
from vqd_jax.config.defaults import defaults

DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SPEC = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)
PAGES = hooks.pages()


def anchors(text):
    """Of the headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@functools.cache
def entries():
    """The pages of the navigation, with #ANCHOR if it leads to a part of one."""

    def walk(items):
        for item in items:
            (value,) = item.values()
            yield from [value] if isinstance(value, str) else walk(value)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return [value.removeprefix("/") for value in walk(nav)]


def test_every_page_is_in_the_navigation_once():
    found = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")]
    assert not {*found} & PAGES.keys()
    assert sorted(e for e in entries() if "#" not in e) == sorted([*found, *PAGES])


def test_navigation_to_a_part_of_a_page_leads_there():
    parts = [entry.split("#") for entry in entries() if "#" in entry]
    assert len(parts) >= 2
    for page, anchor in parts:
        assert anchor in anchors((DOCS / page).read_text(encoding="utf-8")), (page, anchor)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_links_of_a_document_lead_somewhere_in_the_checkout(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?:", target):
            continue
        name, _, anchor = target.partition("#")
        to = path.parent / name if name else path
        assert to.exists(), target
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to.read_text(encoding="utf-8")), target


@pytest.mark.parametrize(
    "uri, link, on_the_site",
    [
        ("tour.md", "[a](training.md#runs)", "[a](training.md#runs)"),
        ("howto/edit.md", "[a](../tour.md)", "[a](../tour.md)"),
        ("tour.md", "[a](../README.md#install)", "[a](index.md#install)"),
        ("index.md", "[a](docs/tour.md), ![b](docs/plan.png)", "[a](tour.md), ![b](plan.png)"),
        ("project/tests.md", "[a](../README.md)", "[a](../index.md)"),
        ("samplers.md", "![a](../results/samplers.png)", "![a](results/samplers.png)"),
        ("howto/edit.md", "[a](../../configs/cub.py)", "[a](../reference/configs.md#cub)"),
        ("terms.md", "[a](../vqd_jax/cli/plan.py)", "[a](reference/commands.md#vqd-plan)"),
        (
            "terms.md",
            "[a](../vqd_jax/config/defaults.py#vqvae)",
            "[a](reference/keys.md#vqvae)",
        ),
        ("evaluation.md", "[`a`](../results/emoji.json)", "`a`"),
        ("tour.md", "[a](gone.md) [b](../gone.py)", "[a](gone.md) [b](../gone.py)"),
        ("tour.md", "[a](https://x.org/y.md) [b](#here)", "[a](https://x.org/y.md) [b](#here)"),
        ("tour.md", "`[a](../LICENSE)`\n```\n[a](../LICENSE)\n```", None),
    ],
)
def test_links_are_made_to_fit_the_site(uri, link, on_the_site):
    assert hooks.relinked(link, uri) == (link if on_the_site is None else on_the_site)


def test_files_outside_of_the_site_are_linked_in_the_repository():
    link = hooks.relinked("[a](../LICENSE)", "tour.md", "https://example.org/x")
    assert link == "[a](https://example.org/x/blob/HEAD/LICENSE)"


def test_the_reference_has_every_command_key_and_config():
    helped = re.findall(
        r"^## vqd (\w+)\n\n```text\nusage: vqd \1 ", PAGES["reference/commands.md"], re.M
    )
    assert helped == [*COMMANDS]
    assert "  --negative_prompt=TEXT  " in PAGES["reference/commands.md"]
    keys = {
        f"{section}.{name}" if hasattr(value, "items") else section
        for section, value in defaults().items()
        for name in (value if hasattr(value, "items") else [section])
    }
    listed = re.findall(r"^\| <code>(.*?)</code>", PAGES["reference/keys.md"], re.M)
    assert sorted(key.replace("\\", "") for key in listed) == sorted(keys)
    headers = re.findall(r"^## (\w+)\n\n```text\n\S", PAGES["reference/configs.md"], re.M)
    assert headers == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def test_the_python_reference_names_what_exists():
    """MkDocs would leave out a member that was renamed."""
    rooms = ("inference/*.py", "samplers/base.py", "core/errors.py")
    code = "".join(p.read_text() for room in rooms for p in (ROOT / "vqd_jax").glob(room))
    for name, members in hooks.PUBLIC.items():
        assert f"::: vqd_jax.{name}\n" in PAGES["reference/python.md"]
        for defined in [name.rpartition(".")[2], *members.split()]:
            assert re.search(rf"^ *(def|class) {defined}\b", code, re.M), (name, defined)


@pytest.mark.parametrize(
    "word",
    "inpainting outpainting img2img LoRA VQ-VAE VQGAN checksum hyperparameter fine-tuning".split(),
)
def test_the_words_that_people_search_for_are_there(word):
    assert re.search(rf"(?m)^\| [^|]*\b{word}\b", (DOCS / "terms.md").read_text(encoding="utf-8"))
