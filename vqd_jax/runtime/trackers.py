"""Programs that show the metrics of a stage while it trains: TensorBoard, and Weights & Biases
(W&B) where the config names a project. The record is metrics.jsonl, see `runtime.log`.
"""

import atexit
import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vqd_jax.core.errors import UserError, one_line
from vqd_jax.core.extras import import_extra
from vqd_jax.core.files import atomic_write
from vqd_jax.runtime.workdir import StageFolder

UPLOAD = 15.0  # seconds in which W&B may upload what is left at the end of a stage or process
LONGEST = 128  # characters of a name in W&B


@runtime_checkable
class Tracker(Protocol):
    """Shows metrics. An OSError of its methods ends training."""

    def write(
        self, step: int, seconds: float, values: Mapping[str, float], images: Mapping[str, Path]
    ) -> None:
        """Adds the values and image files of a step; `seconds` since the epoch is their time."""

    def rewind(self, step: int) -> None:
        """Training resumes after `step`: what has a later one will come again."""

    def close(self) -> None:
        """The stage is done, and nothing more will be written."""


class TensorBoard:
    """Scalars in event files, in a folder that is made with the first of them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._events: Any = None  # tensorboardX's writer, since the first event

    def write(
        self, step: int, seconds: float, values: Mapping[str, float], images: Mapping[str, Path]
    ) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        scalars = [summary.scalar(key, value) for key, value in values.items()]
        self._add([Event(wall_time=seconds, step=step, summary=scalar) for scalar in scalars])

    def rewind(self, step: int) -> None:
        """Hides what comes after `step`."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._folder.is_dir():
            start = SessionLog(status=SessionLog.START)
            self._add([Event(wall_time=time.time(), step=step + 1, session_log=start)])

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _add(self, events: Sequence[Any]) -> None:
        """Appends events. `tensorboardX.SummaryWriter` would write them in a thread, where a full
        disk is a traceback instead of an error.
        """
        if not events:
            return
        if self._events is None:
            from tensorboardX.event_file_writer import EventsWriter

            self._folder.mkdir(exist_ok=True)
            # Names have seconds only; a suffix keeps a second writer from overwriting the file.
            suffix = f".{time.time_ns() % 10**9}"
            self._events = EventsWriter(str(self._folder / "events"), suffix)
        for event in events:
            self._events.write_event(event)
        self._events.flush()


def check_wandb(project: str) -> None:
    """UserError if W&B is not installed, needs a login and has none, or cannot have the project."""
    wandb = import_extra("wandb", "wandb", "wandb.project")
    try:
        wandb.Settings(project=project)
        local = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
        ready = local or wandb.login(prompt=False, verify=False)
    except Exception as error:  # of a name, a key or an environment variable
        raise UserError(f"wandb.project: {_reason(error)}") from error
    if not ready:
        raise UserError(
            "wandb.project needs a login: run `wandb login` or set WANDB_API_KEY; "
            "WANDB_MODE=offline logs without one"
        )


class WandB:
    """A run of W&B for a stage, which a resumed training continues.

    Nothing that happens to W&B ends training: a run that cannot be started online is logged
    offline, and after any other error it is left alone, with a sentence. A run that is not closed,
    as after a signal, is marked as failed when the process ends.

    W&B cannot drop lines. Those that are repeated after `rewind` come later in the run and have the
    same `step`, the x-axis of all metrics.

    Args:
      folder: of the stage; the files of W&B go there, and the run's id.
      project: of W&B.
      group: of the runs of one workdir.
      config: shown with the run.
    """

    def __init__(self, folder: StageFolder, project: str, group: str, config: dict[str, Any]):
        self._run: Any = None  # None until it has started, and after an error
        run_id = _run_id(folder.wandb_id)
        with self._contained():
            self._start(
                dir=folder.path,
                project=project,
                group=group[-LONGEST:],
                job_type=folder.name,
                name=f"{group}/{folder.name}"[-LONGEST:],
                config=config,
                id=run_id,
                resume="allow",
                reinit="create_new",
            )
        atexit.register(_end)  # runs before W&B's own, which may print a traceback

    def write(
        self, step: int, seconds: float, values: Mapping[str, float], images: Mapping[str, Path]
    ) -> None:
        from wandb import Image

        if self._run is not None:
            with self._contained():
                shown = {name: Image(os.fspath(path)) for name, path in images.items()}
                self._run.log({"step": step} | dict(values) | shown)

    def rewind(self, step: int) -> None:
        """Does nothing, see above."""

    def close(self) -> None:
        if self._run is not None:
            with self._contained():
                self._run.finish()
        self._run = None

    def _start(self, **arguments: Any) -> None:
        import wandb

        settings = wandb.Settings(console="off", quiet=True, symlink=False, finish_timeout=UPLOAD)
        try:
            self._run = wandb.init(**arguments, settings=settings)
        except Exception as error:
            print(f"Weights & Biases: {_reason(error)}; logging offline", flush=True)
            wandb.teardown()  # frees the run's id
            self._run = wandb.init(**arguments, settings=settings, mode="offline")
        self._run.define_metric("*", step_metric="step")

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """An error inside is printed, and the last thing that W&B is asked to do."""
        try:
            yield
        except Exception as error:
            self._run = None
            print(f"Weights & Biases: {_reason(error)}; training goes on without it", flush=True)


def _reason(error: Exception) -> str:
    """The first line of its message, or its name."""
    return one_line(str(error).partition("\n")[0] or type(error).__name__)


def _end() -> None:
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown(exit_code=1)


def _run_id(path: Path) -> str:
    """The id in this file, of the run that goes on, or a new one, which is written there."""
    if not path.exists():
        with atomic_write(path, "a log to") as part:
            part.write_text(secrets.token_hex(4))
    return path.read_text(errors="replace").strip()
