"""What every command line shares: one sentence and exit status 2 for a user's error, quiet logs, cached compilations."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, logging

from vqd_jax.errors import UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """`app.run(main)` in which a UserError ends as its sentence."""

    def guarded(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; options are written --name=value")
        try:
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return 0

    app.run(guarded)
