"""The one error that a user can cause. Command lines print its sentence and exit with status 2."""


class UserError(Exception):
    """Bad input: the message is one sentence saying what was wrong, where, and what is accepted."""
