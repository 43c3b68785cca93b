"""The emoji set, built once for all test runs with the same code."""

import hashlib
import tempfile
from pathlib import Path

from vqd_jax.data import array_record, emoji, emoji_art


def emoji_cache() -> Path:
    """A cache folder with nothing but the built set, for tests that write nothing to it. It lies in
    the folder for temporary files, and its name changes with the code that builds the set.
    """
    code = b"".join(Path(module.__file__).read_bytes() for module in (emoji_art, array_record))
    name = f"vqd_jax_tests_{hashlib.sha256(code).hexdigest()[:12]}"
    cache = Path(tempfile.gettempdir()) / name
    emoji.Emoji(cache=str(cache))
    return cache
