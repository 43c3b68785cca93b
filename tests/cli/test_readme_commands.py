"""The commands of Markdown: which are found, how they are made small, and that nothing unknown
passes.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

SCRIPT = ROOT / ".ci" / "readme_commands.py"


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme_commands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_commands_are_found_in_bash_blocks_only(readme):
    text = """
# x
```bash
pip install -e ".[test]"  # comment
cd a && python -m vqd_jax.main \\
  --config=configs/emoji.py
```
    ls
```console
$ rm -rf /
```
   ```bash
   A=b vqd sample --prompt="it's # red"
   ```
```
plain
```
```python
for i in range(2):
    print(i)
```
"""
    assert list(readme.commands(text)) == [
        (4, ["pip", "install", "-e", ".[test]"]),
        (5, ["cd", "a"]),
        (5, ["python", "-m", "vqd_jax.main", "--config=configs/emoji.py"]),
        (13, ["A=b", "vqd", "sample", "--prompt=it's # red"]),
        (19, ["python", "-c", "for i in range(2):\n    print(i)"]),
    ]


@pytest.mark.parametrize(
    "block,said",
    [
        ("ls | head", "line 2: | is not understood"),
        ("a > b", "> is not understood"),
        ("echo 'x", "line 2: No closing quotation"),
        ("python -m vqd_jax.main \\", "line 2: the command has no end"),
    ],
)
def test_readme_syntax_that_would_not_be_run_is_an_error(readme, block, said):
    with pytest.raises(readme.ReadmeError, match=re.escape(said)):
        list(readme.commands(f"```bash\n{block}\n```\n"))
    with pytest.raises(readme.ReadmeError, match="line 1: write ```bash"):
        list(readme.commands("```sh\nls\n```\n"))


def test_readme_commands_are_shrunk_and_unknown_ones_refused(readme):
    shrink = lambda line: readme.shrink(
        next(readme.split(line, 1)), Path("/cache"), Path("/pictures")
    )
    for line in (
        "git clone https://x/y",
        "cd vqd_jax",
        "pip install -e .",
        "python -m pytest -n 2",
        ".ci/run",
        "source .venv/bin/activate",
    ):
        assert shrink(line) is None
    main = [
        "env",
        *readme.UNOPTIMISED,
        "python",
        "-m",
        "vqd_jax.main",
        "--config=c",
        "--config.folder.path=/pictures",
    ]
    assert shrink("python -m vqd_jax.main --config=c --config.folder.path=mine") == [
        *main,
        *readme.SMALL,
        "--config.data.cache=/cache",
    ]
    prepare = shrink(
        "vqd prepare --config=c --config.folder.path=mine --workdir=runs/mine"
    )  # what training then reads
    assert prepare == [
        *main[:-5],
        "vqd",
        "prepare",
        *main[-2:],
        "--workdir=runs/mine",
        *readme.SMALL,
        "--config.data.cache=/cache",
    ]
    assert shrink("python -m vqd_jax prepare --config=c")[: len(main) - 1] == [
        *main[:-3],
        "vqd_jax",
        "prepare",
    ]
    assert shrink("A=1 vqd sample --prompt=x") == [
        "env",
        "A=1",
        "vqd",
        "sample",
        "--prompt=x",
        "--num=2",
    ]
    demo = (
        "env --default-signal=INT A=1 timeout --signal=INT --preserve-status 25 vqd demo "
        "--workdir=x --port=0"
    )
    assert shrink("A=1 vqd demo --workdir=x") == demo.split()
    for line in (
        "vqd export --workdir=x",
        "vqd convert x.safetensors --workdir=y",
        "vqd sample --like=x.png",
    ):
        assert shrink(line) == line.split()
    assert shrink("vqd evaluate --workdir=x")[-2:] == ["--images=8", "--cache=/cache"]
    assert shrink("launch/tpu_vm.sh run --zone=z -- --config=c") == [
        "bash",
        "launch/tpu_vm.sh",
        "--dry-run",
        "run",
        "--zone=z",
        "--",
        "--config=c",
    ]
    assert shrink("sbatch --time=1 launch/slurm.sbatch --config=c") == [
        "bash",
        "launch/slurm.sbatch",
        "--dry-run",
        "--config=c",
    ]
    assert shrink("launch/local.sh --detach --config=c")[-1] == "--dry-run"
    for line in (
        "rm -rf x",
        "python -m vqd_jax.unheard",
        "python x.py",
        "python -m pytestx",
        "cdx",
        "A=b",
    ):
        with pytest.raises(readme.ReadmeError):
            shrink(line)


def test_the_small_settings_exist(readme):
    from vqd_jax.config.defaults import defaults

    for setting in readme.SMALL:
        section, key = setting.removeprefix("--config.").split("=")[0].split(".")
        assert key in defaults()[section]


def run(markdown, folder):
    return subprocess.run(
        [sys.executable, SCRIPT, markdown, f"--work={folder / 'work'}", f"--cache={folder}"],
        capture_output=True,
        text=True,
    )


def test_the_runner_runs_in_a_copy_and_names_the_line_that_fails(tmp_path):
    (tmp_path / "x.md").write_text(
        "```bash\nlaunch/tpu_vm.sh delete --zone=z\n\nlaunch/tpu_vm.sh delete\n```\n"
    )
    done = run(tmp_path / "x.md", tmp_path)
    assert (
        done.returncode == 1
        and "line 4: ended with 1" in done.stderr
        and "--zone is missing" in done.stderr
    )
    assert "line 2: launch/tpu_vm.sh delete --zone=z" in done.stdout
    assert (tmp_path / "work/checkout/vqd_jax/main.py").exists()


@pytest.mark.parametrize(
    "text,said",
    [
        (None, "there is no"),
        ("# x\n", "there is no command"),
        ("```bash\nrm -rf x\n```\n", "line 2: the command is not known"),
    ],
)
def test_the_runner_runs_nothing_of_a_file_it_does_not_understand(tmp_path, text, said):
    if text is not None:
        (tmp_path / "x.md").write_text(text)
    done = run(tmp_path / "x.md", tmp_path)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "work").exists()
