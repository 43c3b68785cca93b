"""Where everything lies in a workdir; nobody else spells a path of it."""

import os
from pathlib import Path

MACHINE = "machine.json"  # beside the metrics: where the run was last started


def stage_folder(workdir: str | os.PathLike, stage: str) -> Path:
    return Path(workdir) / stage / "checkpoints"


def plan_file(workdir: str | os.PathLike) -> Path:
    """Where `vqd plan` keeps what it measured."""
    return Path(workdir) / "diffusion" / "plan.npz"
