"""SHA-256 checksums of the files of a folder, kept in it as JSON.

Only checksums reveal a flipped bit or a truncated file: array formats return wrong values without
an error.
"""

import functools
import hashlib
import json
from collections.abc import Collection

from vqd_jax.core.buckets import AnyPath, files_below, stamps
from vqd_jax.core.files import atomic_write, flush

CHECKSUMS = "sha256.json"


def write_checksums(directory: AnyPath) -> None:
    """Writes the checksums of all files in `directory`, which are then on disk."""
    checksums = {}
    for name, file in files_below(directory):
        checksums[name] = _sha256(file)
        flush(file)
    with atomic_write(directory / CHECKSUMS, "checksums to") as part:
        part.write_text(json.dumps(checksums, indent=1) + "\n")


def mismatch(
    directory: AnyPath,
    subfolder: str | None = None,
    *,
    ignore: Collection[str] = (),
    beside: Collection[str] = (),
) -> str | None:
    """What is wrong with the files whose checksums were written, or None.

    With `subfolder`, checks only the files in it and those outside any subfolder. Files in the
    subfolders `ignore` are not checked, and files named in `beside` need no checksum.
    """
    try:
        checksums = json.loads((directory / CHECKSUMS).read_text())
        if not isinstance(checksums, dict):
            return f"{CHECKSUMS} is not readable"
        there = stamps(directory)
        for name in dict.fromkeys((*checksums, *there)):
            top, inside, _ = name.partition("/")
            if inside and (top in ignore or subfolder not in (None, top)):
                continue
            if name not in checksums:
                if name not in (CHECKSUMS, *beside) and not name.endswith(".part"):
                    return f"{CHECKSUMS} does not list {name}"
                continue
            value = checksums[name]
            if name not in there:
                return f"{name} is missing"
            if _cached_sha256(directory / name, *there[name]) != value:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except ValueError:
        return f"{CHECKSUMS} is not readable"
    return None


@functools.lru_cache(maxsize=4096)
def _cached_sha256(file: AnyPath, size: int, changed: int) -> str:
    """The checksum of a file, read again only after its size or time of change has changed."""
    return _sha256(file)


def _sha256(file: AnyPath) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
