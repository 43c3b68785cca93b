"""Where everything lies in a workdir; nobody else spells a path of it."""

import contextlib
import os
from pathlib import Path

from vqd_jax.core.files import lock

MACHINE = "machine.json"  # beside the metrics: where the run was last started


def stage_folder(workdir: str | os.PathLike, stage: str) -> Path:
    return Path(workdir) / stage / "checkpoints"


def plan_file(workdir: str | os.PathLike) -> Path:
    """Where `vqd plan` keeps what it measured."""
    return Path(workdir) / "diffusion" / "plan.npz"


def lock_workdir(workdir: Path) -> contextlib.AbstractContextManager:
    """Holds the workdir for one training. UserError if another process trains there."""
    return lock(
        workdir / ".lock",
        f"another process is training in {workdir}: wait for it, stop it, or choose another "
        "--workdir",
    )
