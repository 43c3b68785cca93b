"""How the package hangs together: who may import whom, what is never imported early, what every
file says of itself.
"""

import ast
import configparser
import re
import subprocess
import sys

import pytest

from helpers import ROOT

PACKAGE = ROOT / "vqd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# what each folder may import besides itself, in the order of the data
ALLOWED = {
    "core": "",
    "runtime": "core",
    "diffusion": "core",
    "models": "core runtime diffusion",
    "data": "core runtime",
    "samplers": "core diffusion",
    "stages": "core runtime diffusion models data samplers",
    "config": "core runtime diffusion models data samplers stages",
    "inference": "core runtime diffusion models data samplers stages config",
    "eval": "core runtime diffusion models data samplers stages config inference",
    "web": "core runtime diffusion models data samplers stages config inference eval",
    "train": "core runtime diffusion models data samplers stages config inference eval web",
    "cli": "core runtime diffusion models data samplers stages config inference eval web train",
    "main": "cli",
    "__main__": "cli",
}


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(name):
    """The second name of vqd_jax.part.…"""
    return name.split(".")[1] if "." in name else ""


def imports(tree, top_only=False):
    """Full names of what is imported: `from a import b` gives a.b, and a."""
    for node in ast.walk(tree):
        if top_only and node not in tree.body:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {module(path): ast.parse(path.read_text()) for path in FILES}
COMMANDS = {name for name in TREES if part(name) == "cli"}


def test_the_top_has_at_most_16_entries_and_no_other_folder():
    entries = {
        path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")
    }
    assert entries == {*ALLOWED, "__init__"} and len(entries) <= 16


@pytest.mark.parametrize("name", [n for n in TREES if n != "vqd_jax"])
def test_imports_follow_the_order_of_the_folders(name):
    ours = {i for i in imports(TREES[name]) if i.startswith("vqd_jax.")}
    assert {part(i) for i in ours} - {part(name)} - {""} <= {*ALLOWED[part(name)].split()} | (
        {"__version__"} if name == "vqd_jax.__main__" else set()
    )


def test_the_order_has_no_circle():
    seen = []
    for name, below in ALLOWED.items():
        assert {*below.split()} <= {*seen} or name in ("main", "__main__")
        seen.append(name)


def test_no_module_imports_one_that_imports_it():
    """Between modules, too, also through others and inside functions."""
    names = set(TREES)
    graph = {
        name: {i for i in imports(tree) if i in names} - {name} for name, tree in TREES.items()
    }
    done = set()
    while ready := {name for name, below in graph.items() if below - {"vqd_jax"} <= done} - done:
        done |= ready
    assert done == names, sorted(names - done)


def test_no_test_imports_a_test():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [
            i
            for i in imports(ast.parse(path.read_text()))
            if any(p.startswith("test_") for p in i.split("."))
        ], path


def test_the_probe_sees_a_wrong_import():
    tree = ast.parse("def f():\n    from vqd_jax.train import step\n    from vqd_jax import main\n")
    assert {"vqd_jax.train.step", "vqd_jax.main"} <= set(imports(tree))
    assert "vqd_jax.cli.sample" in COMMANDS and "vqd_jax.config.build" not in COMMANDS


@pytest.mark.parametrize("name", TREES)
def test_heavy_libraries_are_imported_where_they_are_used(name):
    early = {i.split(".")[0] for i in imports(TREES[name], top_only=True)}
    assert not early & {
        "torch",
        "tensorflow",
        "tensorflow_datasets",
        "transformers",
        "orbax",
        "matplotlib",
        "wandb",
        "datasets",
    }


def test_no_module_needs_posix():
    """Windows has none of these modules; what `os` and `signal` lack there is asked for first."""
    posix = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & posix, path


def test_what_lies_below_the_config_does_not_see_it():
    """Networks, data, samplers and stages get their fields as arguments."""
    seeing = {
        part(name)
        for name, tree in TREES.items()
        if any(i.startswith("ml_collections") for i in imports(tree))
    }
    assert seeing <= {"config", "inference", "eval", "train", "cli"}


def test_keys_come_from_one_place():
    """`jax.random.key` would follow the environment; see core/prng.py."""
    makers = {
        path.name for path in FILES if re.search(r"random\.(key|PRNGKey)\(", path.read_text())
    }
    assert makers == {"prng.py"}


def test_pure_parts_know_no_network():
    for name in TREES:
        if part(name) in ("diffusion", "samplers"):
            assert not [
                i
                for i in imports(TREES[name])
                if i.split(".")[0] in ("flax", "optax", "orbax", "ml_collections")
            ], name


@pytest.mark.parametrize("entry", ["main", "cli.sample", "cli.evaluate", "inference.pipeline"])
def test_a_fresh_interpreter_loads_neither_torch_nor_tensorflow(entry):
    script = f"import sys, vqd_jax.{entry}; print(sorted({{'torch', 'tensorflow', 'transformers'}} & {{*sys.modules}}))"
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n, tree in TREES.items() if tree.body])
def test_every_module_says_what_it_is(name):
    text = ast.get_docstring(TREES[name])
    assert text and len(text) > 20


def test_console_scripts_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options.entry_points"]["console_scripts"].split("\n"):
        if line:
            name, function = re.fullmatch(r"[\w-]+ = ([\w.]+):(\w+)", line).groups()
            assert any(
                isinstance(node, ast.FunctionDef) and node.name == function
                for node in TREES[name].body
            ), line


def test_nothing_names_a_path_of_one_machine():
    folders = ["vqd_jax", "tests", "configs", "benchmarks", "launch", "docs", "results"]
    files = [
        p
        for f in folders
        for p in (ROOT / f).rglob("*")
        if p.suffix in (".py", ".sh", ".sbatch", ".md", ".json")
    ]
    files += [p for p in (ROOT / "README.md", ROOT / "setup.cfg") if p.exists()]
    place = re.compile(r"(?<![\w.$}])/" + r"(work|root|home/\w+|mnt/\w+)\b|\.\./" + "shared")
    found = [
        f"{p.relative_to(ROOT)}: {m.group()}" for p in files for m in place.finditer(p.read_text())
    ]
    assert not found


def test_the_links_of_the_documents_lead_somewhere():
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "pretrained").rglob("*.md"),
    ]
    links = [
        (path, target)
        for path in files
        for target in re.findall(r"\]\(([^)#]+)", path.read_text())
        if not re.match("https?:", target)
    ]
    assert len(links) > 20 and not [
        (str(path), target) for path, target in links if not (path.parent / target).exists()
    ]
