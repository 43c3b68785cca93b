"""Atomic writes, and locks between processes."""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vqd_jax.core.buckets import AnyPath, is_bucket, readable_errors
from vqd_jax.core.errors import UserError


@contextlib.contextmanager
def atomic_write(path: AnyPath, what: str = "") -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file or a folder, that is renamed to `path` at
    the end; parent folders are created. After an error it is removed and `path` is unchanged.
    For a file in a bucket, the temporary path is a local one.

    An OSError becomes a UserError "cannot write {what} {path}: …".
    """
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (local := Path(folder) / path.name)
            with readable_errors(f"cannot write {what}{' ' * bool(what)}{path}"):
                path.write_bytes(local.read_bytes())
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_file():
            flush(part)
        part.replace(path)
        flush(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {what}{' ' * bool(what)}{path}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def read_bounded(path: str | AnyPath, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes; UserError for a larger one, and for one that
    cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes")
    return content


def read_regular(path: AnyPath, most: int) -> bytes:
    """`read_bounded` for a file in another's folder: UserError for a link, pipe or device."""
    if is_bucket(path):
        return path.read_bytes()
    if not path.is_symlink() and path.is_file():
        return read_bounded(path, most)
    raise UserError(f"{path} is no regular file")


def flush(path: AnyPath) -> None:
    """Returns once the contents of a local file, or the names in a folder, are on the disk: after a
    power failure, too. Systems that cannot do that for a folder go on without.
    """
    if is_bucket(path):
        return
    with contextlib.suppress(OSError if path.is_dir() else ()):
        # Windows writes only what is open for writing to the disk
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder to a free name with ".damaged", which is returned."""
    for number in itertools.count():
        aside = path.with_name(f"{path.name}.damaged{number or ''}")
        if not aside.exists():
            return path.rename(aside)
    raise AssertionError


@contextlib.contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds the lock file `path`; the system frees the lock when the process dies.

    If another process holds it, waits, or raises UserError(`busy`) where that is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(path, blocking=busy is None))
        except Timeout:
            raise UserError(busy) from None
        yield


@contextlib.contextmanager
def remove_on_error(*folders: Path) -> Iterator[None]:
    """Removes these folders, which did not exist before, if an error is raised."""
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes temporaries of `atomic_write` in `folder` that killed processes left. No other
    process may be writing there.
    """
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
