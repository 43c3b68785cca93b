"""What training reads of image files that were not prepared: every one is decoded before training
could meet a broken one.

The result is kept in the cache, so that a set is checked once.
"""

import contextlib
import json
import logging
import os
import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.data.files import TOLERATED, Files, map_threads, summarise

REMEDY = "or run vqd prepare, which leaves out and lists them"


def check_decoding(source: Files, cache: str) -> Files:
    """The set without the images that cannot be decoded, which are logged.

    Raises: UserError if an image has no caption, or if more than 1 % cannot be decoded.
    """
    total, every = len(source.pictures()) + len(source.skipped), f"images in {source.place}"
    named = lambda reasons: summarise(f"{file}: {why}" for file, why in reasons.items())
    if source.skipped:
        raise UserError(
            f"{named(source.skipped)} of the {total} {every} have no caption that can be used: "
            f"mend or remove them, {REMEDY}."
        )
    broken = _broken(
        source, pathlib.Path(cache).expanduser() / f"checked-{source.fingerprint[:16]}.json"
    )
    if len(broken) > TOLERATED * total:
        raise UserError(
            f"{named(broken)} of the {total} {every} cannot be decoded; at most {TOLERATED:.0%} "
            "are skipped: mend or delete "
            f"them, {REMEDY}."
        )
    if broken:
        logging.warning(
            "%s of the %d %s cannot be decoded and are skipped", named(broken), total, every
        )
    return source.without(broken)


def _broken(source: Files, kept: pathlib.Path) -> dict[str, str]:
    """File → why it cannot be decoded, as it is kept, or else found out now."""
    pictures = source.pictures()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stored = json.loads(kept.read_text(encoding="utf-8"))
        if stored.keys() <= set(pictures) and all(isinstance(why, str) for why in stored.values()):
            return stored
    reasons = map_threads(source.fault, pictures, f"checking the images in {source.place}", "image")
    broken = {file: why for file, why in zip(pictures, reasons) if why}
    with contextlib.suppress(OSError):  # then it is found out again
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(broken), encoding="utf-8")
        part.replace(kept)
    return broken
