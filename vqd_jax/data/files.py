"""Image files that are listed when a set is opened and decoded when they are asked for: for sets of
a million pictures.

The fingerprint of a large set sees the names and the sizes of its files, not their bytes.
"""

import collections
import concurrent.futures
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data.images import decode, reason
from vqd_jax.data.source import Record, fingerprint
from vqd_jax.runtime.progress import track

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TOLERATED = 0.01  # share of the pictures that may be broken
THREADS = 16  # for many small reads, which wait for a disk or a network


class Files:
    """A source whose records have a picture in a file each; several records may share one.

    Args:
      name: of the set. place: where its files are, for messages.
      records, files: one file name per record.
      stamps: file name → what changes when the file does, such as its size in bytes.
      read: file name → its content; it may be called by several threads at once.
      skipped: files that are not in the set → why.
      tolerated: share of broken files that preparing may leave out.
    Raises: UserError naming the file, when a picture is asked for that cannot be read or decoded.
    """

    def __init__(
        self,
        name: str,
        place: object,
        records: list[Record],
        files: list[str],
        stamps: Mapping[str, int | str],
        read: Callable[[str], bytes],
        *,
        skipped: Mapping[str, str] | None = None,
        tolerated: float = TOLERATED,
    ):
        self.name, self.place, self.records, self.files = name, place, records, files
        self.skipped, self.tolerated = dict(skipped or {}), tolerated
        self._stamps, self._read = stamps, read
        self.fingerprint = fingerprint(
            name, [(file, stamps[file]) for file in self.pictures()], records=records
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.records[i].example(self.decoded(self.files[i])[1])

    def pictures(self) -> list[str]:
        """The names of the files, each once."""
        return list(dict.fromkeys(self.files))

    def without(self, broken: Mapping[str, str]) -> "Files":
        """The set less some files, given with the reasons."""
        kept = [i for i, file in enumerate(self.files) if file not in broken]
        return (
            Files(
                self.name,
                self.place,
                [self.records[i] for i in kept],
                [self.files[i] for i in kept],
                self._stamps,
                self._read,
                skipped=self.skipped | broken,
                tolerated=self.tolerated,
            )
            if broken
            else self
        )

    def fault(self, file: str) -> str | None:
        """Why a file's picture cannot be decoded, if so."""
        try:
            self.decoded(file)
        except UserError as error:
            return reason(error.__cause__)

    def decoded(self, file: str) -> tuple[bytes, np.ndarray]:
        """A file's content and its picture, uint8 (H, W, 3)."""
        try:
            content = self._read(file)
            return content, decode(content)
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UserError(
                f"The image {printable(file)} in {self.place} cannot be decoded ({reason(error)}): "
                "mend it, or run "
                "vqd prepare, which leaves out some broken images."
            ) from error


def tree(
    name: str,
    root: pathlib.Path,
    records: list[Record],
    files: list[str],
    stamps: Mapping[str, int | str],
    **options: Any,
) -> Files:
    """The source of files below a folder, named by their paths in it."""
    return Files(
        name, root, records, files, stamps, lambda file: (root / file).read_bytes(), **options
    )


def open_folder(name: str, path: str, about: str) -> pathlib.Path:
    """The folder that the user named, if it exists."""
    if not path:
        raise UserError(f"{name}.path is not set: {about}.")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {path}: {about}.")
    return root


def scan(root: pathlib.Path) -> dict[str, int]:
    """The images below a folder, without hidden ones: relative POSIX path → size in bytes, in the
    order of the paths.

    Links to files are followed, and links in the folder itself to other folders; those further down
    are not, which is logged.
    """

    def fail(error: OSError) -> None:
        raise UserError(
            f"The folder {printable(error.filename)} cannot be read: {error.strerror}."
        ) from error

    def images(folder: str) -> tuple[dict[str, int], list[str]]:
        out, links = {}, []
        for parent, children, names in os.walk(root / folder, onerror=fail):
            children[:] = [child for child in children if not child.startswith(".")]
            inside = os.path.relpath(parent, root).replace(os.sep, "/")
            links += [
                f"{inside}/{child}"
                for child in children
                if os.path.islink(os.path.join(parent, child))
            ]
            for name in filter(
                _image, names
            ):  # text, because a million pathlib objects take a minute
                if (size := _size(os.path.join(parent, name))) is not None:
                    out[f"{inside}/{name}"] = size
        return out, links

    here = root.resolve()
    try:
        with os.scandir(root) as entries:
            entries = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        fail(error)
    folders = sorted(
        entry.name
        for entry in entries
        if os.path.isdir(entry.path)
        and not (entry.is_symlink() and pathlib.Path(entry.path).resolve() in (here, *here.parents))
    )
    found = {
        entry.name: size
        for entry in entries
        if _image(entry.name) and (size := _size(entry.path)) is not None
    }
    links = []
    for part, ignored in map_threads(images, folders, f"listing the images in {root}", "folder"):
        found |= part
        links += ignored
    if links:
        logging.warning("%s links to folders in %s are not followed", summarise(links), root)
    return dict(sorted(found.items()))


def _size(path: str) -> int | None:
    """Of a file; 0 of one that cannot be reached, which decoding will tell; None of what is no
    file.
    """
    try:
        found = os.stat(path)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def map_threads(
    function: Callable[[Any], Any], items: list[Any], description: str, unit: str
) -> list[Any]:
    """[function(item) for item in items] by several threads, with a bar."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return (
            list(track(pool.map(function, items), len(items), description, unit)) if items else []
        )


def prefetch(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) in order, some of them computed ahead by threads."""
    workers = os.cpu_count() or 1
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 4 * workers:
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()


def read_list(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({reason(error)}).") from error


def existing_folder(candidates: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """The first that exists."""
    return next((path for path in candidates if path.exists()), None)


def summarise(names: Iterable[str]) -> str:
    """The first names of a list, for a message: "2 (a, b)", "5 (a, b, c, …)"."""
    names = list(map(printable, names))
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def printable(name: str) -> str:
    """A name for a message: what would break its line, or cannot be printed, is escaped, and what
    is too long is cut.
    """
    name = name if name.isprintable() else name.encode("unicode_escape").decode()
    return name if len(name) <= 300 else f"{name[:300]}…"


def _image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
