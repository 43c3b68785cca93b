"""The error for bad input, which commands print as one sentence before they exit with status 2, and
warnings that are not repeated.
"""

import functools
import logging


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and what is accepted."""


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Logs a warning, unless the process has logged it before."""
    logging.warning("%s", message)
