"""SHA-256 sums of the files of a folder, kept in it as JSON.

A flipped bit or a lost end of a file is noticed only so: array formats return wrong values without
an error.
"""

import hashlib
import json
from pathlib import Path

from vqd_jax.core.files import atomic_write

SUMS = "sha256.json"


def write_sums(directory: Path) -> None:
    """Write the sums of all files in `directory`, at once."""
    files = sorted(f for f in directory.rglob("*") if f.is_file())
    sums = {f.relative_to(directory).as_posix(): _sum(f) for f in files}
    with atomic_write(directory / SUMS, "checksums to") as part:
        part.write_text(json.dumps(sums, indent=1) + "\n")


def mismatch(
    directory: Path, subfolder: str | None = None, *, but: tuple[str, ...] = ()
) -> str | None:
    """What is wrong with the files in `subfolder` and those at the top, or None; other files may
    come and go.

    Without a subfolder it is all of them, but those of the subfolders in `but`.
    """
    try:
        sums = json.loads((directory / SUMS).read_text())
        for name, value in sums.items():
            top, inside, _ = name.partition("/")
            if inside and (top in but if subfolder is None else top != subfolder):
                continue
            if not (directory / name).is_file():
                return f"{name} is missing"
            if _sum(directory / name) != value:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, AttributeError):
        return f"{SUMS} is not readable"
    return None


def _sum(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
