"""Checkpoints: one folder per step, written by Orbax, each with the SHA-256 checksums of its files.

A step holds named items, which are restored one at a time, on any number of devices and processes:
trees of arrays, and JSON values. The checksums are written last: a step without them is unfinished.
The best step by a measure has a file best.json besides, with the measure's value, and is kept.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqd_jax.core.buckets import (
    as_path,
    folder_exists,
    is_bucket,
    readable_errors,
    remove_tree,
)
from vqd_jax.core.checksums import CHECKSUMS, mismatch, write_checksums
from vqd_jax.core.errors import UserError, warn_once
from vqd_jax.core.files import atomic_write, flush, remove_leftovers, set_aside
from vqd_jax.runtime import orbax_io

BEST = "best.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best step so far, and the value of the measure by which it is the best."""

    step: int
    measure: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step}, the best by {self.measure} ({self.value:.4g})"


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in a folder. Saving runs in the background: end with `close()`, or `with`.

    Args:
      folder: a local path or one in a bucket, created if need be, with one subfolder per step.
      keep: the number of newest steps to keep, beside the best one.
      read_only: never write, as for a shipped checkpoint or one of a run in progress. Otherwise the
        leftovers of killed saves are removed now.
      shared: whether all processes see the same files in `folder`. If so, each writes its own
        shards of arrays that are sharded over processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        read_only: bool = False,
        shared: bool = False,
    ):
        if keep < 1:
            raise UserError(f"the number of checkpoints to keep must be at least 1, got {keep}")
        path = as_path(folder)
        self.folder = path if is_bucket(path) else path.absolute()
        self.keep = keep
        self.read_only = read_only
        self.shared = shared
        self._worker: concurrent.futures.ThreadPoolExecutor | None = None  # since the first save
        self._pending: concurrent.futures.Future[None] | None = None
        if not read_only and jax.process_index() == 0:
            with self._readable_errors(f"cannot write checkpoints to {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        if not folder_exists(self.folder):
            return []
        folders = filter(_is_step, self.folder.iterdir())
        return sorted(int(d.name) for d in folders if (d / CHECKSUMS).is_file())

    def latest_step(self) -> int | None:
        """Latest step whose checksums match, or None. Read-only instances do not verify `state`.

        Warns about later steps that are damaged. UserError if all are damaged.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            wrong = self._mismatch(step, ignore=("state",) if self.read_only else ())
            if not wrong:
                if damaged:
                    warn_once(f"{'; '.join(damaged)}; step {step} is used")
                return step
            damaged.append(f"checkpoint step {step} in {self.folder} is damaged: {wrong}")
        if damaged:
            raise UserError(
                f"{'; '.join(damaged)}; there is no other: delete them, or use another workdir"
            )
        return None

    def best(self) -> Best | None:
        """The record of the best step; None if none was marked."""
        for step in reversed(self.steps()):
            path = self._directory(step) / BEST
            if path.is_file():
                try:
                    return Best(step=step, **json.loads(path.read_text()))
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"{path} is damaged ({type(error).__name__}): delete it, and the step is "
                        "an ordinary one"
                    ) from error
        return None

    def mark_best(self, best: Best) -> None:
        """Makes a saved step the best one, and removes the one before it unless it is among the
        newest. Collective.

        The record is a file of the step itself, so that it is removed and replaced with the step.
        If two steps have one, after a kill, the later is the best.
        """
        self.wait()
        if jax.process_index() == 0:
            record = {"measure": best.measure, "value": best.value}
            with atomic_write(self._directory(best.step) / BEST, "the record of the best") as part:
                part.write_text(json.dumps(record) + "\n")
            self._remove_superseded(self.steps())

    def choose(self, which: str | int | None = None) -> int | None:
        """The step that is "best" or "last", or that has this number; by default the best if there
        is one, and else the last. None if there are no steps. UserError for what is missing.
        """
        best, steps = self.best(), self.steps()
        if which == "last" or not steps or (which is None and best is None):
            return self.latest_step()
        if which is None or which == "best":
            if best is None:
                raise UserError(
                    f"there is no best checkpoint in {self.folder}: training keeps one by the "
                    "measure that `best` of its section names; take the last"
                )
            return best.step
        if str(which) not in map(str, steps):
            raise UserError(
                f"there is no checkpoint {which} in {self.folder}: choose best, last or one of the "
                f"steps {', '.join(map(str, steps))}"
            )
        return int(which)

    def describe(self, step: int) -> str:
        """The step in words: "step 600, the best by lpips (0.0823)" or "step 900, the last"."""
        best = self.best()
        if best and best.step == step:
            return str(best)
        return f"step {step}{', the last' if step == self.latest_step() else ''}"

    def has(self, item: str, step: int | None = None) -> bool:
        """Whether the step (default: the latest) holds the item."""
        step = self.latest_step() if step is None else step
        return step in self.steps() and (self._directory(step) / item).is_dir()

    def save(self, step: int, items: Mapping[str, Any], *, wait: bool = False) -> None:
        """Saves trees of arrays and JSON values (not those that are None) as `step`, replacing an
        existing one. Collective.

        Process 0 writes, or all processes if they share the folder and the arrays. Arrays are
        copied, so that they may be donated, unless `wait` until everything is written.
        `step` becomes the latest: later steps, of a run that was rewound, are removed once it is
        written. The next `save`, `wait` or `close` raises the error if writing failed.
        """
        if self.read_only:
            raise ValueError(f"the checkpoints in {self.folder} were opened read-only")
        self.wait()
        sharded, directory = self.shared and orbax_io.is_sharded(items), self._directory(step)
        items = {
            name: orbax_io.to_host(value, copy=not wait, sharded=sharded)
            for name, value in items.items()
            if value is not None
        }
        if not sharded and jax.process_index() != 0:
            return
        with self._writing(step):
            if jax.process_index() == 0 and not is_bucket(self.folder):
                self._unfinished(step).touch()
            if jax.process_index() == 0 and directory.exists():
                if is_bucket(directory):  # where renaming is copying
                    _remove(directory)
                else:
                    directory.rename(self._replaced(step))
            if sharded:
                finish = orbax_io.write_sharded(directory, items)
            else:
                finish = functools.partial(orbax_io.write, directory, items)
        self._worker = self._worker or concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending = self._worker.submit(self._write, step, finish)
        if wait:
            self.wait()

    def restore(self, item: str, like: Any = None, step: int | None = None) -> Any:
        """One item of a step (default: `latest_step`), after its checksums were verified.

        With `like`, a tree of arrays or `jax.ShapeDtypeStruct`s, the result has its structure and
        shardings. Without, it is as stored: nested dicts of NumPy arrays, or the JSON value.
        """
        self.wait()
        finished = self.steps()
        if not finished or (step is not None and step not in finished):
            which = "finished checkpoint" if step is None else f"finished checkpoint of step {step}"
            found = f"only steps {', '.join(map(str, finished))}" if finished else "none at all"
            raise UserError(f"there is no {which} in {self.folder}, {found}")
        if step is None:
            step = self.latest_step()
            assert step is not None  # some are finished, and damage to all is an error
        name, directory = f"checkpoint step {step} in {self.folder}", self._directory(step)
        if wrong := self._mismatch(step, item):
            raise UserError(
                f"{name} is damaged: {wrong}; delete {directory} to use an earlier step"
            )
        if not self.has(item, step):
            stored = sorted(d.name for d in directory.iterdir() if d.is_dir())
            raise UserError(f"{name} has no {item!r}, only {', '.join(stored)}")
        value = orbax_io.read(directory, item, like)
        return value if like is None else fit(value, like, f"{item!r} of {name}")

    def wait(self) -> None:
        """Returns once the last save is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None

    def _write(self, step: int, finish: orbax_io.Finish) -> None:
        with self._writing(step):
            finish(functools.partial(self._finish, step))

    def _finish(self, step: int) -> None:
        """Once everything is written: writes the checksums and removes superseded steps."""
        directory = self._directory(step)
        if not is_bucket(directory):  # where Orbax needs it
            for marker in directory.rglob("commit_success.txt"):
                marker.unlink()
        write_checksums(directory)
        if not is_bucket(self.folder):
            self._unfinished(step).unlink(missing_ok=True)
            flush(self.folder)
        _remove(self._replaced(step))
        steps = self.steps()
        for later in [s for s in steps if s > step]:
            _remove(self._directory(later))
        self._remove_superseded([s for s in steps if s <= step])

    def _remove_superseded(self, steps: list[int]) -> None:
        """Removes all but the newest of these ascending steps and the best one."""
        best = [step for step in steps if (self._directory(step) / BEST).is_file()]
        for old in set(steps) - {*steps[-self.keep :], *best[-1:]}:
            _remove(self._directory(old))

    def _mismatch(self, step: int, *args: Any, **options: Any) -> str | None:
        return mismatch(self._directory(step), *args, beside=(BEST,), **options)

    def _writing(self, step: int) -> contextlib.AbstractContextManager:
        return self._readable_errors(f"cannot write checkpoint step {step} to {self.folder}")

    def _readable_errors(self, doing: str) -> contextlib.AbstractContextManager:
        """Errors of writing as a UserError."""
        return (readable_errors if is_bucket(self.folder) else _errors_of_disks)(doing)

    def _directory(self, step: int) -> Path:
        return self.folder / str(step)

    def _unfinished(self, step: int) -> Path:
        """A file that is there while the step is written, except in a bucket."""
        return self.folder / f"{step}.unfinished"

    def _replaced(self, step: int) -> Path:
        return self.folder / f"{step}.replaced"

    def _remove_leftovers(self) -> None:
        """Removes what killed saves left. Steps that have lost their checksums are set aside."""
        if is_bucket(self.folder):
            for directory in self.folder.iterdir() if folder_exists(self.folder) else ():
                if not (directory / CHECKSUMS).is_file():
                    remove_tree(directory)
            return
        for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover)
        for directory in [*filter(_is_step, self.folder.iterdir())]:
            if (directory / CHECKSUMS).is_file():
                remove_leftovers(directory)  # of a record of the best
            elif self._unfinished(int(directory.name)).exists() or not any(directory.iterdir()):
                _remove(directory)
            elif (directory / "_CHECKPOINT_METADATA").is_file():
                aside = set_aside(directory)
                logging.warning(
                    "checkpoint step %s has lost its %s and cannot be verified: it is now %s",
                    *(directory.name, CHECKSUMS, aside),
                )
        for unfinished in self.folder.glob("*.unfinished"):
            unfinished.unlink()
        for replaced in self.folder.glob("*.replaced"):  # of a save over an existing step
            step = replaced.with_suffix("")
            _remove(replaced) if step.exists() else replaced.rename(step)


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and path.is_dir()


def _remove(directory: Path) -> None:
    """Renames the folder first, so that a kill halfway leaves nothing that looks like a step. In a
    bucket, the checksums go first.
    """
    if is_bucket(directory):
        (directory / CHECKSUMS).unlink(missing_ok=True)
        remove_tree(directory)
    elif directory.exists():
        shutil.rmtree(directory.rename(directory.with_name(directory.name + ".deleted")))


@contextlib.contextmanager
def _errors_of_disks(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{doing}: {error.strerror or error}") from error
    except ValueError as error:  # by which tensorstore reports errors of the system
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if not code:
            raise
        raise UserError(f"{doing}: {os.strerror(int(code[1]))}") from error


def fit(stored: Any, like: Any, what: str) -> Any:
    """The stored leaves in the structure and with the shardings of `like`. UserError if names,
    shapes or dtypes differ; `what` names the tree in it.
    """
    stored, wanted = orbax_io.leaves_by_path(stored), orbax_io.leaves_by_path(like)
    dtype = lambda x: np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype
    text = lambda x: f"{dtype(x)}{list(np.shape(x))}"
    differences = {
        "missing": ["/".join(p) for p in wanted if p not in stored],
        "not expected": ["/".join(p) for p in stored if p not in wanted],
        "different": [
            f"{'/'.join(p)} is {text(stored[p])} but {text(x)} is expected"
            for p, x in wanted.items()
            if p in stored and text(stored[p]) != text(x)
        ],
    }
    listed = []
    for kind, names in differences.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            listed.append(f"{kind}: {', '.join(names[:5])}{more}")
    if listed:
        raise UserError(f"{what} does not fit this model ({'; '.join(listed)})")
    leaves = [_with_sharding(stored[path], leaf) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _with_sharding(value: Any, like: Any) -> Any:
    """The value as a Python scalar, or with the sharding of `like`."""
    if isinstance(like, (bool, int, float)):
        return np.asarray(value).item()
    sharding = getattr(like, "sharding", None)
    if sharding is None or isinstance(value, jax.Array):  # which was read with its sharding
        return value
    return jax.make_array_from_callback(np.shape(value), sharding, lambda index: value[index])


def widen(tree: Any) -> Any:
    """Half-precision arrays, in which small checkpoints are shipped, as float32."""
    half = lambda leaf: isinstance(leaf, np.ndarray) and leaf.dtype == np.float16
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if half(leaf) else leaf, tree)
