"""Data sets of image files, listed when a set is opened and decoded on access: for millions of
images.

The fingerprint of a large set covers the names and sizes of its files, not their bytes.
"""

import concurrent.futures
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
from jaxtyping import UInt8

from vqd_jax.core.errors import UserError, printable
from vqd_jax.data.found_instead import beside
from vqd_jax.data.image_bytes import decode, reason
from vqd_jax.data.source import Example, Record, fingerprint
from vqd_jax.runtime.progress import track

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".heic", ".heif", ".jxl"),
)
TOLERATED = 0.01  # share of the images that may be broken
THREADS = 16  # for many small reads, which wait for a disk or a network

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageFiles:
    """A data source with an image file for each record; several records may share one.

    Args:
      name: the name of the data set.
      location: the folder of its files, for messages.
      records, files: the records, and the file name of each.
      stamps: file name → a value that changes with the file, such as its size in bytes.
      read: file name → content; called from several threads.
      skipped: file name → the reason why this file is not in the set.
      tolerated: the share of broken files that `vqd prepare` leaves out.
      colour: "srgb" or "raw", see `image_bytes.decode`.
    Raises: UserError naming the file, on access to an image that cannot be read or decoded.
    """

    def __init__(
        self,
        name: str,
        location: pathlib.Path,
        records: list[Record],
        files: list[str],
        stamps: Mapping[str, int | str],
        read: Callable[[str], bytes],
        *,
        skipped: Mapping[str, str] | None = None,
        tolerated: float = TOLERATED,
        colour: str = "srgb",
    ):
        self.name, self.location, self.records, self.files = name, location, records, files
        self.skipped, self.tolerated = dict(skipped or {}), tolerated
        self.colour, self._stamps, self._read = colour, stamps, read
        converted = [colour] if colour != "raw" else []  # as earlier versions read all files
        self.fingerprint = fingerprint(
            name,
            [(file, stamps[file]) for file in self.unique_files()],
            *converted,
            records=records,
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        return self.records[i].example(self.decoded(self.files[i])[1])

    def unique_files(self) -> list[str]:
        """The file names without repetitions, in the order of the records."""
        return list(dict.fromkeys(self.files))

    def without(self, broken: Mapping[str, str]) -> "ImageFiles":
        """The set without the files in `broken`, a mapping from file name to reason."""
        if not broken:
            return self
        kept = [i for i, file in enumerate(self.files) if file not in broken]
        return self._with(kept, skipped={**self.skipped, **broken})

    def in_colour(self, colour: str) -> "ImageFiles":
        """The set with images decoded to these colours, one of `image_bytes.COLOURS`."""
        return self._with(range(len(self.records)), colour=colour)

    def _with(self, kept: Sequence[int], **changed: Any) -> "ImageFiles":
        same = {"skipped": self.skipped, "tolerated": self.tolerated, "colour": self.colour}
        return ImageFiles(
            self.name,
            self.location,
            [self.records[i] for i in kept],
            [self.files[i] for i in kept],
            self._stamps,
            self._read,
            **same | changed,
        )

    def fault(self, file: str) -> str | None:
        """The reason why a file cannot be decoded, or None."""
        try:
            self.decoded(file)
        except UserError as error:
            return reason(error.__cause__)

    def decoded(self, file: str) -> tuple[bytes, UInt8[np.ndarray, "H W 3"]]:
        """The content of a file, and its decoded image."""
        try:
            content = self._read(file)
            return content, decode(content, colour=self.colour)
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UserError(
                f"the image {printable(file)} in {self.location} cannot be decoded "
                f"({reason(error)}): repair it, or run vqd prepare, which leaves out up to "
                f"{self.tolerated:.0%} broken images"
            ) from error


def folder_source(
    name: str,
    root: pathlib.Path,
    records: list[Record],
    files: list[str],
    stamps: Mapping[str, int | str],
    **options: Any,
) -> ImageFiles:
    """A source of files below the folder `root`, named by their relative paths."""
    return ImageFiles(
        name, root, records, files, stamps, lambda file: (root / file).read_bytes(), **options
    )


def existing_folder(name: str, path: str, about: str) -> pathlib.Path:
    """The folder in the config key `name`.path. UserError, with the layout `about`, if it is not
    there.
    """
    if not path:
        raise UserError(f"{name}.path is not set, pass --config.{name}.path=DIR: {about}")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {printable(path)}{beside(root)}: {about}")
    return root


def list_images(root: pathlib.Path) -> dict[str, int]:
    """Lists the images below a folder, except hidden ones: relative POSIX path → size in bytes,
    sorted by path.

    Follows links to files, and links to folders directly in `root`; logs a warning about links to
    folders further down.
    """

    def fail(error: OSError) -> NoReturn:
        raise UserError(
            f"the folder {printable(error.filename)} cannot be read: {error.strerror}"
        ) from error

    def images(folder: str) -> tuple[dict[str, int], list[str]]:
        sizes, links = {}, []
        for parent, children, names in os.walk(root / folder, onerror=fail):
            children[:] = [child for child in children if not child.startswith(".")]
            inside = os.path.relpath(parent, root).replace(os.sep, "/")
            links += [
                f"{inside}/{child}"
                for child in children
                if os.path.islink(os.path.join(parent, child))
            ]
            # strings, because a million pathlib objects take a minute
            for name in filter(_is_image, names):
                size = _file_size(os.path.join(parent, name))
                if size is not None:
                    sizes[f"{inside}/{name}"] = size
        return sizes, links

    try:
        with os.scandir(root) as entries:
            entries = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        fail(error)
    resolved = root.resolve()
    loops = (resolved, *resolved.parents)
    folders = sorted(
        entry.name
        for entry in entries
        if os.path.isdir(entry.path)
        and not (entry.is_symlink() and pathlib.Path(entry.path).resolve() in loops)
    )
    found = {
        entry.name: size
        for entry in entries
        if _is_image(entry.name) and (size := _file_size(entry.path)) is not None
    }
    links = []
    for below, ignored in map_threads(images, folders, f"listing the images in {root}", "folder"):
        found |= below
        links += ignored
    if links:
        logging.warning("%s links to folders in %s are not followed", summarise(links), root)
    return dict(sorted(found.items()))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _file_size(path: str) -> int | None:
    """The size in bytes; 0 if the file cannot be reached, which decoding reports; None for pipes,
    folders and devices.
    """
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def map_threads(
    function: Callable[[Item], Result], items: list[Item], description: str, unit: str
) -> list[Result]:
    """`[function(item) for item in items]` on several threads, with a progress bar."""
    if not items:
        return []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(track(pool.map(function, items), len(items), description, unit))


def read_lines(path: pathlib.Path) -> list[str]:
    """The stripped lines of a UTF-8 file, except empty ones."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({reason(error)})") from error


def first_existing(candidates: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """The first path that exists."""
    return next((path for path in candidates if path.exists()), None)


def summarise(names: Iterable[str]) -> str:
    """The number of names and the first three, for a message: "2 (a, b)", "5 (a, b, c, …)"."""
    names = list(map(printable, names))
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
