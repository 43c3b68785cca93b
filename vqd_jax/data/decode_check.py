"""Decodes every image of a data set that was not prepared, before training meets a broken one.

The result is kept in the cache, so a set is checked once.
"""

import contextlib
import json
import logging
import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.data.image_files import TOLERATED, ImageFiles, map_threads, summarise

REMEDY = "or run vqd prepare, which leaves out and lists them"


def check_decoding(source: ImageFiles, cache: str) -> ImageFiles:
    """The set without the images that cannot be decoded; a warning names them.

    Raises: UserError if an image has no caption, or if more than 1 % cannot be decoded.
    """
    total = len(source.unique_files()) + len(source.skipped)
    images = f"of the {total} images in {source.location}"
    if source.skipped:
        raise UserError(
            f"{_with_reasons(source.skipped)} {images} have no usable caption: add one, remove "
            f"them, {REMEDY}"
        )
    broken = _broken(
        source, pathlib.Path(cache).expanduser() / f"checked-{source.fingerprint[:16]}.json"
    )
    if len(broken) > TOLERATED * total:
        raise UserError(
            f"{_with_reasons(broken)} {images} cannot be decoded; at most {TOLERATED:.0%} are "
            f"skipped: repair or delete them, {REMEDY}"
        )
    if broken:
        logging.warning("%s %s cannot be decoded and are skipped", _with_reasons(broken), images)
    return source.without(broken)


def _with_reasons(reasons: dict[str, str]) -> str:
    return summarise(f"{file}: {why}" for file, why in reasons.items())


def _broken(source: ImageFiles, path: pathlib.Path) -> dict[str, str]:
    """The files that cannot be decoded and the reasons, read from `path` or else written there."""
    files = source.unique_files()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.keys() <= set(files) and all(isinstance(why, str) for why in stored.values()):
            return stored
    reasons = map_threads(source.fault, files, f"checking the images in {source.location}", "image")
    broken = {file: why for file, why in zip(files, reasons) if why}
    with contextlib.suppress(UserError):  # without the file the next run checks again
        with atomic_write(path) as part:
            part.write_text(json.dumps(broken), encoding="utf-8")
    return broken
