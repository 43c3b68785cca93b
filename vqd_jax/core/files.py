"""Files and folders that appear whole or not at all, and one sentence where the disk is full or may
not be written to.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vqd_jax.core.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path, what: str = "") -> Iterator[Path]:
    """Where to write what then takes the place of `path`; folders on the way are made. After an
    error nothing is left.

    UserError, which begins with "cannot write" and `what`, where the system does not let it be
    written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {what}{' ' * bool(what)}{path}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


@contextlib.contextmanager
def remove_on_error(*folders: Path) -> Iterator[None]:
    """After an error these folders, which were not there before, are gone."""
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed in `atomic_write` left in the folder; nobody may be writing
    there now.
    """
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
