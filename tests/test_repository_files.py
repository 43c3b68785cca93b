"""The files around the code agree with it: CI and its parts, versions, images, and what the guides
for contributors name.
"""

import configparser
import re

import pytest
import yaml

from helpers import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CI = (ROOT / ".ci" / "run").read_text()
GUIDES = ("CONTRIBUTING.md", "SECURITY.md")


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_every_part_of_ci():
    (known,) = re.findall(r'\[\[ "((?: \w+)+ )" == \*" \$argument "\* \]\]', CI)
    (by_default,) = re.findall(r"^parts=.*\$\{\*:-([\w ]+)\}", CI, re.M)
    assert set(re.findall(r'\$parts [!=]= \*" (\w+) "\*', CI)) == {*known.split()}
    jobs = load(".github/workflows/ci.yml")["jobs"]
    parts = {name: job["strategy"]["matrix"]["part"] for name, job in jobs.items()}
    assert parts["quick"] == by_default.split() and "if" not in jobs["quick"]
    assert sorted(sum(parts.values(), [])) == sorted(known.split())
    for job in jobs.values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands == [".ci/run ${{ matrix.part }}"] and job["timeout-minutes"] <= 360


def test_the_workflow_has_the_pythons_that_ci_looks_for():
    others = re.search(r"together on_python ([\d. ]+)", CI)[1].split()
    (aot,) = re.findall(r"^aot\(\)(?s:.*?)interpreter ([\d.]+)\)", CI, re.M)
    lowest = SETUP["options"]["python_requires"].removeprefix(">=")
    jobs = load(".github/workflows/ci.yml")["jobs"]
    for name, wanted in (("quick", others), ("slow", [aot])):
        (step,) = [s for s in jobs[name]["steps"] if "python-version" in s.get("with", {})]
        *more, default = step["with"]["python-version"].split()
        assert default == lowest and sorted(more) == sorted(wanted)


def test_the_citation_is_of_this_version_and_of_the_papers_in_the_readme():
    cited, setup = load("CITATION.cff"), SETUP["metadata"]
    assert cited["cff-version"] == "1.2.0"
    for key, name in (("version", "version"), ("title", "name"), ("license", "license")):
        assert str(cited[key]) == setup[name]
    assert setup["description"] in cited["abstract"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = [paper["url"] for paper in cited["references"]]
    assert papers == re.findall(r"https://arxiv\.org/abs/[\d.]+", readme)[:2]
    assert all(paper["authors"] and paper["year"] for paper in cited["references"])


def test_the_requirements_are_the_package_and_its_extras_but_those_of_some_machines():
    extras = SETUP["options.extras_require"]
    wanted = SETUP["options"]["install_requires"].split("\n")
    for name in ("data", "clip", "eval", "emoji"):
        wanted += [line for line in extras[name].split("\n") if not line.startswith("vqd_jax[")]
    assert sorted((ROOT / "requirements.txt").read_text().split()) == sorted(filter(None, wanted))


def test_the_hooks_have_the_versions_of_the_extra_test():
    wanted = SETUP["options.extras_require"]["test"].split()
    hooks = {
        hook["id"]: hook
        for repository in load(".pre-commit-config.yaml")["repos"]
        for hook in repository["hooks"]
    }
    assert hooks.keys() == {"ruff-check", "ruff-format", "mypy", "shellcheck"}
    for hook in hooks.values():
        packages = hook.get("additional_dependencies", [])
        assert {*packages} <= {*wanted} and bool(packages) == (hook["language"] == "python")
    scripts = [
        path.relative_to(ROOT).as_posix()
        for folder in ("launch", ".ci")
        for path in (ROOT / folder).iterdir()
        if path.is_file()
        if path.suffix in (".sh", ".sbatch") or path.read_bytes().startswith(b"#!/usr/bin/env bash")
    ]
    assert ".ci/run" in scripts and len(scripts) > 6
    assert all(re.search(hooks["shellcheck"]["files"], script) for script in scripts)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_have_what_their_commands_need(name):
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    first, *rest = [line for line in lines if line and not line.startswith("#")]
    sent = {line[1:] for line in rest if line.startswith("!")}
    assert first == "*" and not sent & {".git", "tests", "docs", "results"}
    # pip needs these, and users the folders
    read = SETUP["metadata"]["long_description"].removeprefix("file: ")
    needed = {read, SETUP["metadata"]["license_files"], "requirements.txt"}
    assert sent >= needed | {"vqd_jax", "setup.cfg", "pyproject.toml"}
    assert sent >= {"configs", "launch", "pretrained"}
    text = (ROOT / "docker" / name).read_text()
    for source in re.findall(r"^COPY (\S+) \.$", text, re.M):
        assert source == "." or source in sent
    base = re.search(r"^FROM python:([\d.]+)-slim$", text, re.M)[1]
    assert base in re.search(r"together on_python ([\d. ]+)", CI)[1].split()
    assert 'ENTRYPOINT ["vqd"]' in text and f"-f docker/{name} " in text
    for config in re.findall(r"--config=(configs/\w+\.py)", text):
        assert (ROOT / config).is_file()
    for workdir in re.findall(r"--workdir=(pretrained/\w+)", text):
        assert (ROOT / workdir).is_dir()


def is_path(span):
    """Whether the code in a guide names a file or folder of the checkout."""
    known = span.split("/")[0] in {path.name for path in ROOT.iterdir()}
    return known and re.fullmatch(r"\.?[\w./-]+", span) and ("/" in span or "." in span[1:])


@pytest.mark.parametrize("name", GUIDES)
def test_the_files_that_a_guide_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    named = {span for span in re.findall(r"`([^`\n]+)`", text) if is_path(span)}
    named |= set(re.findall(r"\]\((?!https?:)([^)#\s]+)", text))
    assert len(named) > 5 and [path for path in named if not (ROOT / path).exists()] == []
    for target, anchor in re.findall(r"\]\(([\w./]+\.md)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (ROOT / target).read_text(encoding="utf-8"), re.M)
        assert anchor in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


def test_the_places_to_extend_have_the_names_that_the_guide_says():
    """In a row `file` | `name`, each name is in one of the row's files."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    seen = 0
    for row in re.findall(r"^\| (`[\w./]+/[\w./]+`.*) \|$", text, re.M):
        first, second = row.split(" | ")
        spans = re.findall(r"`([^`]+)`", second)
        files = [p for p in (*re.findall(r"`([^`]+)`", first), *filter(is_path, spans))]
        contents = "\n".join(
            (ROOT / p).read_text(encoding="utf-8") for p in files if (ROOT / p).is_file()
        )
        for span in spans:
            if not is_path(span) and re.fullmatch(r"[\w ]+", span):
                assert re.search(rf"\b{span}\b", contents), (first, span)
                seen += 1
    assert seen > 20


def test_a_sampler_is_named_in_every_place_that_the_guide_lists():
    """`remask`, which has options: what the guide leaves out, a new sampler would lack."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding a sampler")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([\w./]+\.\w+)`", section))
    named = [p for p in (ROOT / "vqd_jax").rglob("*.py") if re.search('"remask"', p.read_text())]
    assert len(named) > 3
    assert [p for p in named if p.relative_to(ROOT).as_posix() not in listed] == []


def test_issue_forms_have_what_github_needs():
    forms = [p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert ids and len(ids) == len({*ids})
        for field in form["body"]:
            wanted = "value" if field["type"] == "markdown" else "label"
            assert field["attributes"][wanted]


def test_the_probes_see_what_is_wrong():
    assert is_path("vqd_jax/gone.py") and is_path(".ci/gone") and is_path("README.md")
    assert not is_path("gone/x.py") and not is_path("vqd --version") and not is_path("SAMPLERS")
