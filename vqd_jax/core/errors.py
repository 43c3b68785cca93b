"""The error for bad input, which commands print as one sentence before they exit with status 2."""


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and what is accepted."""
