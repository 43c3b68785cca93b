"""How the package hangs together: who may import whom, what is never imported early, what every file says of itself."""
import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vqd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LEAVES = {"shapes", "errors", "interrupt", "progress", "checksums", "unpickling"}  # open to everyone
# what each part may import besides itself and the leaves; command lines may import anything that is not one
ALLOWED = {
    "shapes": set(), "errors": set(), "interrupt": set(), "progress": set(), "checksums": set(), "unpickling": set(),
    "log": set(), "history": {"log"},
    "writing": set(), "pictures": {"writing"}, "command": set(), "storage": set(), "checkpoint": {"storage"},
    "sharding": set(), "defaults": set(), "hub": set(), "published": set(), "adapter": {"checkpoint", "convert", "writing"},
    "processes": set(), "hardware": set(),
    "continuing": {"checkpoint", "defaults", "pipeline"},
    "diffusion": set(), "models": set(), "text": set(), "data": set(),
    "samplers": {"diffusion"},
    "convert": {"models", "diffusion"},
    "eval": {"data", "models", "convert", "sharding"},
    "train": {"adapter", "diffusion", "samplers", "models", "eval", "checkpoint", "log", "sharding", "data", "text", "convert", "pictures",
              "hardware", "processes", "writing"},
    "build": {"adapter", "data", "diffusion", "samplers", "models", "text", "train", "eval", "checkpoint", "sharding", "hub"},
    "pipeline": {"adapter", "build", "checkpoint", "defaults", "diffusion", "samplers", "sharding", "text", "train", "writing"},
    "rehearsal": {"build", "models", "sharding", "train"},
    "editing": {"data", "pipeline", "samplers"}, "planning": {"data", "pictures", "pipeline", "samplers", "train"},
    "loading_flags": set(), "sampling_flags": {"loading_flags"},
    "recipe": {"data", "editing", "pipeline", "samplers"}, "demo": {"data", "pictures", "pipeline", "recipe"},
    "explaining": {"pictures", "pipeline", "samplers", "train"},
    "protocols": set(), "generation": {"data", "pipeline", "writing"}, "judging": {"data", "eval", "hub", "protocols", "text"},
    "evaluation": {"build", "data", "pipeline", "eval", "generation", "judging", "models", "train"},
    "evaluation_page": {"judging", "pictures"},
    "report": {"checkpoint", "defaults", "evaluation_page", "history", "log", "pipeline", "planning", "train", "writing"},
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


def is_command(tree):
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


TREES = {module(path): ast.parse(path.read_text()) for path in FILES}
COMMANDS = {name for name, tree in TREES.items() if is_command(tree)}


@pytest.mark.parametrize("name", [n for n in TREES if n != "vqd_jax"])
def test_imports_follow_the_layers(name):
    ours = {i for i in imports(TREES[name]) if i.startswith("vqd_jax.")}
    assert not [i for i in ours if i in COMMANDS], "nothing imports a command line"
    if name in COMMANDS:
        return
    me = part(name)
    assert me in ALLOWED, f"say in ALLOWED what {me} may import"
    assert {part(i) for i in ours} - {me} - LEAVES <= ALLOWED[me] or me in LEAVES
    if me in LEAVES:
        assert not ours


def test_the_tests_import_one_command_line_at_most():
    """The flags of two, of the same name, would clash in the process that runs both tests."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").glob("*.py")]
    assert len({i for tree in trees for i in imports(tree)} & COMMANDS) <= 1


def test_the_layers_have_no_cycle():
    done = set(LEAVES)
    while more := {k for k, v in ALLOWED.items() if v <= done} - done:
        done |= more
    assert done == ALLOWED.keys()


def test_the_probe_sees_a_wrong_import():
    tree = ast.parse("def f():\n    from vqd_jax.train import step\n    from vqd_jax import main\n")
    assert {"vqd_jax.train.step", "vqd_jax.main"} <= set(imports(tree))
    assert "vqd_jax.main" in COMMANDS and "vqd_jax.build" not in COMMANDS


@pytest.mark.parametrize("name", TREES)
def test_heavy_libraries_are_imported_where_they_are_used(name):
    early = {i.split(".")[0] for i in imports(TREES[name], top_only=True)}
    assert not early & {"torch", "tensorflow", "tensorflow_datasets", "transformers", "orbax", "matplotlib", "gradio"}


def test_only_build_and_the_command_lines_see_the_config():
    seeing = {name for name, tree in TREES.items() if any(i.startswith("ml_collections") for i in imports(tree))}
    assert seeing - COMMANDS <= {"vqd_jax.build", "vqd_jax.defaults", "vqd_jax.pipeline", "vqd_jax.published"}


def test_pure_parts_know_no_network():
    for name in TREES:
        if part(name) in ("diffusion", "samplers"):
            assert not [i for i in imports(TREES[name]) if i.split(".")[0] in ("flax", "optax", "orbax", "ml_collections")], name


@pytest.mark.parametrize("entry", ["main", "sample", "evaluate", "pipeline"])
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
            assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in TREES[name].body), line


def test_nothing_names_a_path_of_one_machine():
    folders = ["vqd_jax", "tests", "configs", "benchmarks", "launch", "docs", "results"]
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".sh", ".sbatch", ".md", ".json")]
    files += [p for p in (ROOT / "README.md", ROOT / "setup.cfg") if p.exists()]
    place = re.compile(r"(?<![\w.$}])/" + r"(work|root|home/\w+|mnt/\w+)\b|\.\./" + "shared")
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in files for m in place.finditer(p.read_text())]
    assert not found


def test_the_links_of_the_documents_lead_somewhere():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "pretrained").rglob("*.md")]
    links = [(path, target) for path in files for target in re.findall(r"\]\(([^)#]+)", path.read_text())
             if not re.match("https?:", target)]
    assert len(links) > 20 and not [(str(path), target) for path, target in links if not (path.parent / target).exists()]
