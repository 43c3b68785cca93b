"""Checksums: SHA-256 of the files of a folder, kept in it as JSON, or of an array at the end of its
file, and CRC-32 inside of a JSON object that is written alone or as a line of a file.

Only checksums reveal a flipped bit or a truncated file: array formats return wrong values without
an error.
"""

import functools
import hashlib
import io
import json
import re
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from vqd_jax.core.buckets import AnyPath, files_below, stamps
from vqd_jax.core.files import atomic_write, flush

CHECKSUMS = "sha256.json"
SEAL = "crc32"  # the key


def write_checksums(directory: AnyPath, suffix: str = "") -> None:
    """Writes the checksums of the files in `directory`, or of those whose names end with `suffix`,
    which are then on disk.
    """
    checksums = {}
    for name, file in files_below(directory):
        if name.endswith(suffix):
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
    only: str = "",
) -> str | None:
    """What is wrong with the files whose checksums were written, or None.

    With `subfolder`, checks only the files in it and those outside any subfolder. Files in the
    subfolders `ignore` are not checked, and files named in `beside` need no checksum. `only` is the
    suffix of the files that have one.
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
                required = name.endswith(only) and not name.endswith(".part")
                if required and name not in (CHECKSUMS, *beside):
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


def array_bytes(array: np.ndarray) -> bytes:
    """A file in NumPy's format, which NumPy reads, too, with its SHA-256 at the end."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue() + hashlib.sha256(file.getbuffer()).digest()


def array_from(content: bytes, *, required: bool = True) -> np.ndarray:
    """The array of `array_bytes`; with `required=False` also that of a file without the checksum.
    ValueError if it has changed.
    """
    file, changed = io.BytesIO(content), ValueError("it has changed since it was written")
    try:
        array = np.load(file)
    except Exception:  # damaged headers raise nearly anything
        raise changed from None
    file_bytes, checksum = memoryview(content)[: file.tell()], content[file.tell() :]
    if (required or checksum) and hashlib.sha256(file_bytes).digest() != checksum:
        raise changed
    return array


def seal(text: str) -> str:
    """The text of a JSON object, not an empty one, with the CRC-32 of what comes before as its last
    key.
    """
    before = text.rstrip().removesuffix("}").rstrip()
    space, end = ("\n ", "\n") if "\n" in before else (" ", "")
    return f'{before},{space}"{SEAL}": {zlib.crc32(before.encode())}{end}}}'


def unsealed(text: str) -> dict[str, Any]:
    """The object in a text, whose key of `seal`, if it has one, is removed. ValueError if the text
    has changed since it was sealed, or is no JSON object.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    last = re.search(r',\s*"([^"]*)": (\d+)\s*\}\s*$', text)
    sealed = last and zlib.crc32(text[: last.start()].encode()) == int(last[2])
    if sealed and last[1] != SEAL or not sealed and SEAL in value:
        raise ValueError("it has changed since it was written")
    value.pop(SEAL, None)
    return value


@functools.lru_cache(maxsize=4096)
def _cached_sha256(file: AnyPath, size: int, changed: int) -> str:
    """The checksum of a file, read again only after its size or time of change has changed."""
    return _sha256(file)


def _sha256(file: AnyPath) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
