"""The full emoji set, built once for all test runs with the same code that draws it."""

import hashlib
import os
import tempfile
from pathlib import Path

from vqd_jax.data import array_record, emoji, emoji_art


def emoji_cache() -> Path:
    """A cache folder with the built set: VQD_TEST_CACHE, or one in the folder for temporary files
    whose name changes with the code.
    """
    code = b"".join(Path(module.__file__).read_bytes() for module in (emoji_art, array_record))
    name = f"vqd_jax_tests_{hashlib.sha256(code).hexdigest()[:12]}"
    cache = Path(os.environ.get("VQD_TEST_CACHE") or Path(tempfile.gettempdir()) / name)
    emoji.Emoji(cache=str(cache))
    return cache
