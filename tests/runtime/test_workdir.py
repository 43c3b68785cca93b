"""The layout of a workdir is spelled in one module, and one training holds a workdir at a time."""

import ast
from pathlib import Path

import pytest

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.workdir import StageFolder, Workdir


def test_no_other_module_spells_a_path_in_a_workdir():
    names = {"checkpoints", "metrics.jsonl", "tensorboard", "machine.json", "profile", "plan.npz"}
    names |= {"samples.png", "adapter", "report.html", "cache", ".lock", "vqvae"}
    spelled = []
    for path in (ROOT / "vqd_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                if isinstance(node.right, ast.Constant) and node.right.value in names:
                    spelled.append(f"{path.relative_to(ROOT / 'vqd_jax')}: {node.right.value}")
    ours = {"runtime/workdir.py"}
    known = {  # in other folders: PyTorch's downloads, the layout of diffusers, generated images
        "models/weights/inception.py: checkpoints",
        "models/weights/diffusers.py: vqvae",
        "eval/generate.py: .lock",
    }
    assert {line for line in spelled if line.split(":")[0] not in ours} <= known
    assert len(spelled) > len(known)


def test_files_of_a_stage_are_found_by_kind_and_step(tmp_path):
    folder = StageFolder(tmp_path / "vqvae")
    folder.path.mkdir()
    written = {
        "samples": [(step, folder.samples(step)) for step in (5, 200, 10**8)],
        "reconstructions": [(7, folder.reconstructions(7))],
    }
    for path in (*(path for files in written.values() for _, path in files), folder.codes(3)):
        path.touch()
    (folder.path / "other.png").touch()
    assert folder.images() == written and folder.code_counts() == [(3, folder.codes(3))]
    assert StageFolder(tmp_path / "none").images() == {}


def test_stages_with_metrics_come_in_the_order_of_training(tmp_path):
    for name in ("diffusion", "another", "vqvae"):
        (tmp_path / name).mkdir()
        StageFolder(tmp_path / name).metrics.touch()
    (tmp_path / "autoregressive").mkdir()
    assert [f.name for f in Workdir(tmp_path).logged_stages()] == ["vqvae", "diffusion", "another"]
    assert Workdir(tmp_path / "vqvae").logged_stages() == [StageFolder(tmp_path / "vqvae")]
    assert Workdir(Path("none")).logged_stages() == []


def test_one_training_at_a_time_which_removes_what_killed_ones_left(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with workdir.training():
        pass
    leftovers = [tmp_path / "run" / ".samples.png.1.part", tmp_path / "run/vqvae/.x.1.part"]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.touch()
    with workdir.training():
        assert not any(leftover.exists() for leftover in leftovers)
        leftovers[0].touch()
        with pytest.raises(UserError, match=f"another process is training in {workdir.path}"):
            with workdir.training():
                pass
        assert leftovers[0].exists()  # of the training that goes on
