"""Checkpoints: one folder per step, written by Orbax, each with the SHA-256 sums of its files.

A step holds named items that are restored one at a time, on any number of devices and processes:
trees of arrays, and anything JSON can hold. The sums are written last: a step without them was
never finished.
"""

import concurrent.futures
import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqd_jax.core.checksums import CHECKSUMS, mismatch, write_checksums
from vqd_jax.core.errors import UserError
from vqd_jax.runtime import orbax_io


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in `folder`, a local path. Saving runs in the background: end with `close()`,
    or use `with`.

    Args:
      folder: made if need be; one subfolder per step.
      keep: how many of the newest steps stay.
      read_only: write nothing at all, as for a shipped checkpoint or one that another process is
        still training; otherwise what killed saves left behind is removed now.
      shared: whether all processes see the same files in `folder`; then each writes its own parts
      of arrays that are cut over them.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        read_only: bool = False,
        shared: bool = False,
    ):
        if "://" in str(folder):
            raise UserError(
                f"checkpoints are kept on local paths, mount the bucket to use it, got {folder}"
            )
        if keep < 1:
            raise UserError(f"the number of checkpoints to keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.read_only = read_only
        self.shared = shared
        self._worker = None  # started by the first save
        self._pending = None
        if not read_only and jax.process_index() == 0:
            with _readable_errors(f"cannot write checkpoints to {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clean()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(d.name) for d in self.folder.iterdir() if _is_step(d) and (d / CHECKSUMS).is_file()
        )

    def latest_step(self) -> int | None:
        """The newest step that is as it was written, None if there is none at all; who only reads
        does not look at its "state".

        Newer ones that are damaged are named in a warning. UserError if all are damaged.
        """
        finished, damaged = self.steps(), []
        for step in reversed(finished):
            wrong = _damage(self.folder / str(step), ("state",) if self.read_only else ())
            if not wrong:
                if damaged and (self.folder, step) not in _WARNED:
                    _WARNED.add((self.folder, step))
                    logging.warning("%s; step %d is used", "; ".join(damaged), step)
                return step
            damaged.append(f"checkpoint step {step} in {self.folder} is damaged: {wrong}")
        if damaged:
            raise UserError(
                f"{'; '.join(damaged)}; no other is there: begin in another workdir, or delete them"
            )
        return None

    def has(self, item: str, step: int | None = None) -> bool:
        """Whether the step (default: the latest) holds the item."""
        step = self.latest_step() if step is None else step
        return step in self.steps() and (self.folder / str(step) / item).is_dir()

    def save(self, step: int, items: Mapping[str, Any], *, wait: bool = False) -> None:
        """Save trees of arrays and JSON-able values (None: left out) as `step`, replacing what the
        step held.

        Every process calls it; the first one writes, or all do where they share the folder and the
        arrays. It copies the arrays, which may then be donated, or waits until all is written.
        `step` becomes the latest: once it is safe, later steps, of a run that was rewound, go. A
        failure to write is raised by the next `save`, `wait` or `close`.
        """
        if self.read_only:
            raise ValueError(f"the checkpoints in {self.folder} were opened read-only")
        self.wait()
        together, directory = self.shared and orbax_io.is_sharded(items), self.folder / str(step)
        items = {
            name: orbax_io.to_host(value, copy=not wait, together=together)
            for name, value in items.items()
            if value is not None
        }
        if not together and jax.process_index() != 0:
            return
        with self._writing(step):
            if jax.process_index() == 0 and directory.exists():
                directory.rename(self._replaced(step))
            write = (
                orbax_io.write_sharded(directory, items)
                if together
                else functools.partial(orbax_io.write, directory, items)
            )
        self._worker = self._worker or concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending = self._worker.submit(self._write, step, write)
        if wait:
            self.wait()

    def restore(self, item: str, like: Any = None, step: int | None = None) -> Any:
        """One item of a step (default: the latest that is whole), after its files have been checked
        against their sums.

        With `like`, a tree of arrays or `jax.ShapeDtypeStruct`s, the result has its structure and
        its shardings; without, it is as stored: nested dicts of NumPy arrays, or the JSON value.
        """
        self.wait()
        finished, latest = self.steps(), step is None
        if not finished or (step is not None and step not in finished):
            which = "finished checkpoint" if step is None else f"finished checkpoint of step {step}"
            found = f"only steps {', '.join(map(str, finished))}" if finished else "none at all"
            raise UserError(f"there is no {which} in {self.folder}, {found}")
        step = self.latest_step() if step is None else step
        place = f"checkpoint step {step} in {self.folder}"
        directory = self.folder / str(step)
        if (
            wrong := None
            if latest and not (self.read_only and item == "state")
            else mismatch(directory, item)
        ):  # else it was looked at
            raise UserError(
                f"{place} is damaged: {wrong}; delete {directory} to use an earlier step"
            )
        if not self.has(item, step):
            raise UserError(f"{place} has no {item!r}, only {', '.join(_items(directory))}")
        stored = orbax_io.read(directory, item, like)
        return stored if like is None else fit(stored, like, f"{item!r} of {place}")

    def wait(self) -> None:
        """Return once what was saved is on disk."""
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

    def _write(self, step: int, write: Callable[[Callable[[], None]], None]) -> None:
        with self._writing(step):
            write(functools.partial(self._seal, step))

    def _seal(self, step: int) -> None:
        """When all is written: adds the sums, and removes what is superseded."""
        directory = self.folder / str(step)
        for marker in directory.rglob(
            "commit_success.txt"
        ):  # for object stores; tells nothing here but paths
            marker.unlink()
        write_checksums(directory)
        _remove(self._replaced(step))
        steps = self.steps()
        for old in [s for s in steps if s > step] + [s for s in steps if s <= step][: -self.keep]:
            _remove(self.folder / str(old))

    def _writing(self, step: int) -> contextlib.AbstractContextManager:
        return _readable_errors(f"cannot write checkpoint step {step} to {self.folder}")

    def _replaced(self, step: int) -> Path:
        return self.folder / f"{step}.replaced"

    def _clean(self) -> None:
        for leftover in [
            *self.folder.glob("*.orbax-checkpoint-tmp*"),
            *self.folder.glob("*.deleted"),
        ]:
            shutil.rmtree(leftover)
        for directory in list(filter(_is_step, self.folder.iterdir())):
            finished = (directory / CHECKSUMS).is_file()
            if not finished and (
                (directory / "_CHECKPOINT_METADATA").is_file() or not any(directory.iterdir())
            ):
                _remove(directory)
        for replaced in self.folder.glob(
            "*.replaced"
        ):  # a save over an existing step was cut short
            step = replaced.with_suffix("")
            _remove(replaced) if step.exists() else replaced.rename(step)


_WARNED: set[tuple[Path, int]] = set()


def _damage(directory: Path, but: tuple[str, ...]) -> str | None:
    """What is wrong with a step; looked for again only when one of its files changes."""
    stat = lambda f: (str(f), f.stat().st_size, f.stat().st_mtime_ns)
    return _look(
        directory, but, tuple(stat(f) for f in sorted(directory.rglob("*")) if f.is_file())
    )


@functools.lru_cache(maxsize=64)
def _look(
    directory: Path, but: tuple[str, ...], files: tuple[tuple[str, int, int], ...]
) -> str | None:
    return mismatch(directory, but=but)


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and path.is_dir()


def _items(directory: Path) -> list[str]:
    return sorted(d.name for d in directory.iterdir() if d.is_dir())


def _remove(directory: Path) -> None:
    """Renaming first: a kill halfway never leaves something that looks like a step."""
    if directory.exists():
        shutil.rmtree(directory.rename(directory.with_name(directory.name + ".deleted")))


@contextlib.contextmanager
def _readable_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{doing}: {error.strerror or error}") from error
    except ValueError as error:  # so tensorstore says it
        if not (code := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        raise UserError(f"{doing}: {os.strerror(int(code[1]))}") from error


def fit(stored: Any, like: Any, what: str) -> Any:
    """The stored leaves in the structure and on the devices of `like`."""
    stored, wanted = orbax_io.by_path(stored), orbax_io.by_path(like)
    form = lambda x: (
        tuple(np.shape(x)),
        np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype,
    )
    text = lambda x: f"{form(x)[1]}{list(form(x)[0])}"
    problems = {
        "missing": ["/".join(p) for p in wanted if p not in stored],
        "not expected": ["/".join(p) for p in stored if p not in wanted],
        "different": [
            f"{'/'.join(p)} is {text(stored[p])} but {text(x)} is expected"
            for p, x in wanted.items()
            if p in stored and form(stored[p]) != form(x)
        ],
    }
    if any(problems.values()):
        listed = (
            f"{kind}: {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for kind, names in problems.items()
            if names
        )
        raise UserError(f"{what} does not fit this model ({'; '.join(listed)})")
    return jax.tree.unflatten(
        jax.tree.structure(like), [_place(stored[p], x) for p, x in wanted.items()]
    )


def _place(value: Any, like: Any) -> Any:
    if isinstance(like, (bool, int, float)):
        return np.asarray(value).item()
    if (sharding := getattr(like, "sharding", None)) is None or isinstance(
        value, jax.Array
    ):  # where it was read to
        return value
    return jax.make_array_from_callback(np.shape(value), sharding, lambda index: value[index])


def widen(tree: Any) -> Any:
    """Half-precision arrays, in which small checkpoints are shipped, as float32."""
    half = lambda leaf: isinstance(leaf, np.ndarray) and leaf.dtype == np.float16
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if half(leaf) else leaf, tree)
