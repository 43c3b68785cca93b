"""The error for bad input, which commands print as one sentence before they exit with status 2,
warnings that are not repeated, and names from outside in both.
"""

import functools
import logging
import re

# line breaks and other control characters, marks that change the direction of a text, and bytes of
# a file name that are no UTF-8
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_NAME = 300  # characters


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and what is accepted."""


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Logs a warning, unless the process has logged it before."""
    logging.warning("%s", message)


def one_line(text: object) -> str:
    """The text with what could break a line, or hide or forge a part of it, escaped."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def printable(name: str) -> str:
    """A name from outside for a message, on one line; of more than 300 characters, the first."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
