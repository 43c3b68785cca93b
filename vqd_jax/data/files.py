"""Image files that are listed when a set is opened and decoded when they are asked for: for sets of a million pictures.

The fingerprint of such a set sees the names and the sizes of its files, not their bytes.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vqd_jax.data.folder import SUFFIXES, decode
from vqd_jax.data.source import Record, fingerprint
from vqd_jax.errors import UserError
from vqd_jax.progress import track

THREADS = 16  # for many small reads, which wait for a disk or a network


class Files:
    """A source whose records have a picture in a file each; several records may share one.

    Args:
      name: of the set. place: where its files are, for messages.
      records, files: one file name per record.
      sizes: file name → bytes.
      read: file name → its content; it may be called by several threads at once.
    Raises: UserError naming the file, when a picture is asked for that cannot be read or decoded.
    """

    def __init__(self, name: str, place: object, records: list[Record], files: list[str], sizes: dict[str, int],
                 read: Callable[[str], bytes]):
        self.name, self.place, self.records, self.files = name, place, records, files
        self.skipped: list[str] = []
        self._read = read
        self.fingerprint = fingerprint(name, [(file, sizes[file]) for file in self.pictures()], records=records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.records[i].example(self.decoded(self.files[i])[1])

    def pictures(self) -> list[str]:
        """The names of the files, each once."""
        return list(dict.fromkeys(self.files))

    def decoded(self, file: str) -> tuple[bytes, np.ndarray]:
        """A file's content and its picture, uint8 (H, W, 3)."""
        try:
            content = self._read(file)
            return content, decode(content)
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UserError(f"The image {file} in {self.place} cannot be decoded ({_reason(error)}): mend it, or run python -m "
                            "vqd_jax.prepare, which leaves out some broken images.") from error


def tree(name: str, root: pathlib.Path, records: list[Record], files: list[str], sizes: dict[str, int]) -> Files:
    """The source of files below a folder, named by their paths in it."""
    return Files(name, root, records, files, sizes, lambda file: (root / file).read_bytes())


def opened(name: str, path: str, about: str) -> pathlib.Path:
    """The folder that the user named, if it exists."""
    if not path:
        raise UserError(f"{name}.path is not set: {about}.")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {path}: {about}.")
    return root


def scan(root: pathlib.Path) -> dict[str, int]:
    """The images below a folder, without hidden ones: relative POSIX path → size in bytes, in the order of the paths."""
    def sizes(folder: str) -> dict[str, int]:
        out = {}
        for parent, children, names in os.walk(root / folder):
            children[:] = [child for child in children if not child.startswith(".")]
            inside = os.path.relpath(parent, root).replace(os.sep, "/")
            for name in filter(_image, names):  # text, because a million pathlib objects take a minute
                out[f"{inside}/{name}"] = os.stat(os.path.join(parent, name)).st_size
        return out

    with os.scandir(root) as entries:
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        found = {entry.name: entry.stat().st_size for entry in entries if entry.is_file() and _image(entry.name)}
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    for part in threaded(sizes, folders, f"listing the images in {root}", "folder"):
        found |= part
    return dict(sorted(found.items()))


def threaded(function: Callable[[Any], Any], items: list[Any], description: str, unit: str) -> list[Any]:
    """[function(item) for item in items] by several threads, with a bar."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(track(pool.map(function, items), len(items), description, unit)) if items else []


def existing(candidates: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """The first that exists."""
    return next((path for path in candidates if path.exists()), None)


def some(names: Iterable[str]) -> str:
    """The first names of a list, for a message: "2 (a, b)", "5 (a, b, c, …)"."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error) or type(error).__name__
