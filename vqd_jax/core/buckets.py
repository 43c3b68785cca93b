"""Folders in Google Cloud Storage, by their addresses gs://BUCKET/FOLDER: paths by `etils.epath`,
copies by gcsfs.

Objects in a bucket appear whole or not at all.
"""

import base64
import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import check_extra

# Paths in a bucket have the methods of `Path`, and are none.
if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = PurePath

PREFIX = "gs://"
ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._-]+)+/?")


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether the path lies in a bucket."""
    return os.fspath(path).startswith(PREFIX)


def as_path(path: str | os.PathLike) -> AnyPath:
    """A local path, or one in a bucket, which has the same methods. UserError for an address of
    another kind.
    """
    address = os.fspath(path)
    if "://" not in address:
        return Path(path)
    if not ADDRESS.fullmatch(address):
        raise UserError(
            f"write a local folder or gs://BUCKET/FOLDER, with letters, digits, dots, hyphens and "
            f"underscores, got {address}"
        )
    check_extra("gcsfs", "gcs", address)
    from etils import epath

    return epath.Path(address.rstrip("/"))


def files_below(folder: AnyPath) -> list[tuple[str, AnyPath]]:
    """(path relative to `folder`, path) of all files in it, sorted."""
    if is_bucket(folder):
        return [(name, folder / name) for name in sorted(_objects(folder))]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def stamps(folder: AnyPath) -> dict[str, tuple[int, int]]:
    """Relative name → (size, time of the last change) of all files in a folder."""
    if is_bucket(folder):
        found = _objects(folder).items()
        return {name: (about["size"], int(about["generation"])) for name, about in found}
    files = files_below(folder)
    return {name: (file.stat().st_size, file.stat().st_mtime_ns) for name, file in files}


def folder_exists(folder: AnyPath) -> bool:
    """Whether the folder is there. Errors of a bucket, such as no access, are raised."""
    if not is_bucket(folder):
        return folder.is_dir()
    forget_listings(folder)
    try:
        return bool(_file_system().ls(_key(folder)))
    except FileNotFoundError:
        return False


def remove_tree(folder: AnyPath) -> None:
    """Removes a folder with everything in it."""
    if is_bucket(folder):
        bucket_path: Any = folder
        bucket_path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder)


def forget_listings(path: AnyPath) -> None:
    """gcsfs remembers what it has listed; what other processes wrote is seen after this."""
    if is_bucket(path):
        _file_system().invalidate_cache()


def download(bucket: AnyPath, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Copies the files of `bucket` whose relative names are `wanted`, and which differ from those
    in `folder` and are newer, into it.
    """
    for name, found in _objects(bucket).items():
        file = folder / name
        if not wanted(name) or _same(file, found):
            continue
        if file.exists() and file.stat().st_mtime > found["mtime"].timestamp():
            continue
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        _file_system().get_file(found["name"], str(part))
        os.utime(part, (found["mtime"].timestamp(),) * 2)
        part.replace(file)


def upload(folder: Path, bucket: AnyPath, wanted: Callable[[str], bool]) -> None:
    """Copies the files of `folder` whose relative names are `wanted`, and which are not the same in
    `bucket`, into it.
    """
    there = _objects(bucket)
    for name, file in files_below(folder):
        if wanted(name) and not (name in there and _same(file, there[name])):
            _file_system().put_file(str(file), f"{_key(bucket)}/{name}")


@contextlib.contextmanager
def readable_errors(doing: str) -> Iterator[None]:
    """Errors of gcsfs and of the network as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of four libraries, which have no common class of errors
        raise UserError(f"{doing}: {type(error).__name__}: {error}") from error


def _objects(folder: AnyPath) -> dict[str, dict[str, Any]]:
    """Relative name → what the bucket knows about a file."""
    forget_listings(folder)
    found = _file_system().find(_key(folder), detail=True)
    return {name.removeprefix(f"{_key(folder)}/"): about for name, about in found.items()}


def _key(path: AnyPath) -> str:
    return os.fspath(path).removeprefix(PREFIX)


def _same(file: Path, found: dict[str, Any]) -> bool:
    if not file.is_file() or file.stat().st_size != found["size"]:
        return False
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "md5").digest()
    return base64.b64encode(digest).decode() == found.get("md5Hash")


def _file_system() -> Any:
    import fsspec

    return fsspec.filesystem("gs", finalize_on_close=True)  # the one that epath uses
