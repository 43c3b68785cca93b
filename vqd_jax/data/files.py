"""Image files that are listed when a set is opened and decoded when they are asked for: for sets of a million pictures.

The fingerprint of a large set sees the names and the sizes of its files, not their bytes.
"""

import concurrent.futures
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqd_jax.data.source import Record, fingerprint
from vqd_jax.errors import UserError
from vqd_jax.progress import track

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

    def __init__(self, name: str, place: object, records: list[Record], files: list[str], stamps: Mapping[str, int | str],
                 read: Callable[[str], bytes], *, skipped: Mapping[str, str] | None = None, tolerated: float = TOLERATED):
        self.name, self.place, self.records, self.files = name, place, records, files
        self.skipped, self.tolerated = dict(skipped or {}), tolerated
        self._stamps, self._read = stamps, read
        self.fingerprint = fingerprint(name, [(file, stamps[file]) for file in self.pictures()], records=records)

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
        return Files(self.name, self.place, [self.records[i] for i in kept], [self.files[i] for i in kept], self._stamps, self._read,
                     skipped=self.skipped | broken, tolerated=self.tolerated) if broken else self

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
            raise UserError(f"The image {file} in {self.place} cannot be decoded ({reason(error)}): mend it, or run python -m "
                            "vqd_jax.prepare, which leaves out some broken images.") from error


def tree(name: str, root: pathlib.Path, records: list[Record], files: list[str], stamps: Mapping[str, int | str],
         **options: Any) -> Files:
    """The source of files below a folder, named by their paths in it."""
    return Files(name, root, records, files, stamps, lambda file: (root / file).read_bytes(), **options)


def decode(content: bytes) -> np.ndarray:
    """Bytes of any image file that Pillow reads → uint8 (H, W, 3): upright, first frame, on white where transparent."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=-1)
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """16-bit grey by its upper byte; other depths are taken as they are up to 255, and as 16-bit beyond."""
    if pixels.dtype.itemsize > 2 and pixels.max(initial=0) <= 255:
        return pixels.clip(0, 255).astype(np.uint8)
    return (pixels.clip(0, 65535).astype(np.int64) >> 8).astype(np.uint8)


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


def reason(error: BaseException) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its text has an address in memory
        return "it is empty or no image"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
