"""The layout of a workdir: every path inside one is spelled here.

Of a workdir in a bucket, the checkpoints are written to the bucket by every process. All other
files are written to a local folder, `Workdir.path`, and copied to the bucket by `Workdir.upload`.

WORKDIR/
  .lock                 held by the process that trains
  cache/                prepared data sets and tokens, unless data.cache names another folder
  samples.png           final samples of the diffusion stage; samples-STAGE.png of others
  adapter/              the adapter, where one is trained, in the layout of PEFT
  report.html           the report
  captions.txt          training captions, one a line, which the page suggests
  vqvae/  diffusion/  autoregressive/    one folder for each stage
    checkpoints/STEP/         the last ones and the best one, see `runtime.checkpoint`
    metrics.jsonl             one line of scalars for each logged step
    tensorboard/              the same scalars
    wandb/, wandb-id.txt      the files and the id of the run of Weights & Biases, if there is one
    machine.json              the machine on which the stage was last started
    parameters.txt            the names, shapes and sizes of the parameters
    profile/                  traces of single steps
    samples-STEP.png          samples during training; in vqvae/ reconstructions-STEP.png
    codes-STEP.npy            (vqvae) how often each code was chosen on held-out images (k,)
    plan.npz, plan.png        (diffusion) what `vqd plan` measured
"""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vqd_jax.core import buckets
from vqd_jax.core.buckets import AnyPath, as_path, is_bucket
from vqd_jax.core.errors import UserError
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
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb-id.txt"

    @property
    def machine(self) -> Path:
        return self.path / "machine.json"

    @property
    def parameters(self) -> Path:
        return self.path / "parameters.txt"

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

    def images_of(self, step: int) -> dict[str, Path]:
        """Kind of image -> its file of this step."""
        return {
            kind: path for kind, files in self.images().items() for at, path in files if at == step
        }

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
    """A folder with a model, or with the training of one: local, or gs://BUCKET/FOLDER."""

    location: str | os.PathLike

    @functools.cached_property
    def root(self) -> AnyPath:
        """The folder, where it is."""
        return as_path(self.location)

    @functools.cached_property
    def path(self) -> Path:
        """The folder, or the local one of what a bucket has but checkpoints."""
        if not is_bucket(self.root):
            return self.root
        local = Path.home() / ".cache" / "vqd_jax" / "workdirs"
        return local / os.fspath(self.root).removeprefix(buckets.PREFIX)

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def captions(self) -> Path:
        return self.path / "captions.txt"

    @property
    def plan(self) -> AnyPath:
        return self.root / "diffusion" / "plan.npz"

    def samples(self, stage: str) -> Path:
        """The final samples of a stage."""
        return self.path / ("samples.png" if stage == "diffusion" else f"samples-{stage}.png")

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / name)

    def checkpoints(self, stage: str) -> AnyPath:
        return self.root / stage / "checkpoints"

    def logged_stages(self) -> list[StageFolder]:
        """The folders with metrics, in the order of training; or this one, if it has metrics."""
        found = [StageFolder(path) for path in (self.path, *sorted(self.path.glob("*")))]
        order = lambda folder: (*STAGES, folder.name).index(folder.name)
        return sorted((folder for folder in found if folder.metrics.exists()), key=order)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Holds the workdir for one training, after removing what killed ones left half-written.
        A bucket's files are fetched first, and its new ones copied there at the end. Folders that
        are new and still empty at the end, since the run could not begin, are removed.

        UserError if another process trains there; of a bucket, only one on this machine is seen.
        """
        busy = (
            f"another process is training in {self.path}: wait for it, stop it, or choose another "
            "--workdir"
        )
        with _without_empty_folders(self.path), lock(self.path / ".lock", busy):
            for folder in (self.path, self.adapter, *(self.stage(name).path for name in STAGES)):
                remove_leftovers(folder)
            self.download()
            try:
                yield
            except BaseException:
                with contextlib.suppress(UserError):  # the first error is the one to see
                    self.upload()
                raise
            self.upload()

    def exists(self) -> bool:
        with buckets.readable_errors(f"cannot read {self.root}"):
            return buckets.folder_exists(self.root)

    def download(self, prefix: str = "") -> None:
        """Fetches from the bucket, if this is one, what is newer there: files whose relative names
        begin with `prefix`.
        """
        wanted = lambda name: name.startswith(prefix) and _is_copied(name)
        if is_bucket(self.root):
            with buckets.readable_errors(f"cannot read {self.root}"):
                buckets.download(self.root, self.path, wanted)

    def upload(self) -> None:
        """Copies to the bucket, if this is one, what has changed."""
        if is_bucket(self.root):
            with buckets.readable_errors(f"cannot write to {self.root}"):
                buckets.upload(self.path, self.root, _is_copied)


def _is_copied(name: str) -> bool:
    """Whether a file of this relative name is copied between a bucket and `Workdir.path`: not
    checkpoints, hidden files and prepared data sets.
    """
    folder, _, rest = name.partition("/")
    if folder == "cache":
        return rest.startswith("tokens-")
    return "/checkpoints/" not in name and not any(p.startswith(".") for p in name.split("/"))


@contextlib.contextmanager
def _without_empty_folders(path: Path) -> Iterator[None]:
    """Removes those of the path and its parents that are new and have no files but the lock."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        files = [file for file in path.rglob("*") if not file.is_dir()]
        if new and files == [path / ".lock"]:
            shutil.rmtree(path)
            with contextlib.suppress(OSError):  # another process writes beside it
                for folder in new[1:]:
                    folder.rmdir()
