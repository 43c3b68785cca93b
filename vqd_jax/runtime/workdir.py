"""The layout of a workdir: every path inside one is spelled here.

WORKDIR/
  .lock                 held by the process that trains
  cache/                prepared data sets and tokens, unless data.cache names another folder
  samples.png           final samples of the diffusion stage; samples-STAGE.png of others
  adapter.safetensors   the adapter, where one is trained
  report.html           the report
  vqvae/  diffusion/  autoregressive/    one folder for each stage
    checkpoints/STEP/         the last ones and the best one, see `runtime.checkpoint`
    metrics.jsonl             one line of scalars for each logged step
    tensorboard/              the same scalars
    machine.json              the machine on which the stage was last started
    profile/                  traces of single steps
    samples-STEP.png          samples during training; in vqvae/ reconstructions-STEP.png
    codes-STEP.npy            (vqvae) how often each code was chosen on held-out images (k,)
    plan.npz, plan.png        (diffusion) what `vqd plan` measured
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from vqd_jax.core.files import lock, remove_leftovers

STAGES = ("vqvae", "diffusion", "autoregressive")  # in the order in which they are trained


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage in a workdir."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def machine(self) -> Path:
        return self.path / "machine.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def samples(self, step: int) -> Path:
        return self.path / f"samples-{step:08d}.png"

    def reconstructions(self, step: int) -> Path:
        return self.path / f"reconstructions-{step:08d}.png"

    def codes(self, step: int) -> Path:
        return self.path / f"codes-{step:08d}.npy"

    def images(self) -> dict[str, list[tuple[int, Path]]]:
        """Kind of image ("samples", "reconstructions") -> (step, file), by step."""
        return self._by_step("png")

    def code_counts(self) -> list[tuple[int, Path]]:
        """(step, file) of `codes`, by step."""
        return self._by_step("npy").get("codes", [])

    def _by_step(self, suffix: str) -> dict[str, list[tuple[int, Path]]]:
        out: dict[str, list[tuple[int, Path]]] = {}
        for path in sorted(self.path.glob(f"*.{suffix}")):
            if named := re.fullmatch(r"([a-z_]+)-(\d+)", path.stem):
                out.setdefault(named[1], []).append((int(named[2]), path))
        return {kind: sorted(files) for kind, files in out.items()}


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A folder with a model, or with the training of one."""

    path: Path

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter.safetensors"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def plan(self) -> Path:
        return self.stage("diffusion").path / "plan.npz"

    def samples(self, stage: str) -> Path:
        """The final samples of a stage."""
        return self.path / ("samples.png" if stage == "diffusion" else f"samples-{stage}.png")

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / name)

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage).checkpoints

    def logged_stages(self) -> list[StageFolder]:
        """The folders with metrics, in the order of training; or this one, if it has metrics."""
        found = [StageFolder(path) for path in (self.path, *sorted(self.path.glob("*")))]
        order = lambda folder: (*STAGES, folder.name).index(folder.name)
        return sorted((folder for folder in found if folder.metrics.is_file()), key=order)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Holds the workdir for one training, after removing what killed ones left half-written.

        UserError if another process trains there.
        """
        busy = (
            f"another process is training in {self.path}: wait for it, stop it, or choose another "
            "--workdir"
        )
        with lock(self.path / ".lock", busy):
            for folder in (self.path, *(self.stage(name).path for name in STAGES)):
                remove_leftovers(folder)
            yield
