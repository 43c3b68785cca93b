"""What every command line shares: one sentence and a non-zero exit for a user's error, and quiet
logs.
"""

import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.signals import Terminated

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of a disk, or what one may have of it


def run(
    main: Callable[[Sequence[str]], None], *, arguments: int = 0, again: str = "starts anew"
) -> None:
    """`app.run(main)` in which a user's error, in the flags or later, ends as one sentence and
    status 2.

    Beside options the command takes at most that many `arguments`. `again` says what the same
    command does after it was interrupted.
    """

    def guarded(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1 + arguments:
                raise UserError(
                    f"unexpected argument {argv[1 + arguments]!r}; options are written --name=value"
                )
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            return _sentence(error)
        except BrokenPipeError:
            _silence()
            return 1
        except OSError as error:  # reading and writing where the user said
            if error.filename is None and error.errno not in FULL:
                raise
            if error.filename is None:  # files have said their own name
                _silence()
            return _sentence(f"{error.filename or 'standard output'}: {error.strerror}")
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command {again}", file=sys.stderr)
            return 130
        except Terminated:
            print(f"\nended as asked; the same command {again}", file=sys.stderr)
        return 0

    app.run(guarded, flags_parser=_parse)


def workdir(config: str, named: str | None) -> Path:
    """Where the experiment of --config=FILE:VARIANT is kept: the named folder, else
    runs/FILE-VARIANT. UserError without that file, or for a bucket.
    """
    path, variant = config_file(config)
    if "://" in (named or ""):
        raise UserError(
            f"a workdir is a local folder, got {named}: mount the bucket, or let launch/tpu_vm.sh "
            "keep the workdir in it"
        )
    return Path(named or Path("runs") / (Path(path).stem + (f"-{variant}" if variant else "")))


def config_file(config: str) -> tuple[str, str]:
    """(FILE, VARIANT) of --config=FILE:VARIANT. UserError without that file."""
    path, _, variant = config.partition(":")
    if not path:
        raise UserError("--config is missing; for a first run take --config=configs/emoji.py")
    if not Path(path).is_file():
        raise UserError(
            f"there is no config file {path}; the ones that come with vqd_jax are in configs/"
        )
    return path, variant


def _parse(argv: list[str]) -> Any:
    """absl's flags, where a config file that cannot be read or a key that it does not have is a
    sentence, too.
    """
    if {"-h", "--help"} & {*argv[1:]}:
        print(usage(argv[0]))
        sys.exit(0)
    try:
        return app.parse_flags_with_usage(argv)
    except UserError as error:
        sys.exit(_sentence(error))
    except OSError as error:  # ml_collections, on a key of a config file that is not there
        missing = re.search(r"Attempted \[.*\]:\n\s+(\S+)\n.*No such file", str(error))
        if not missing:
            raise
        sys.exit(
            _sentence(
                f"there is no config file {missing[1]}; the ones that come with vqd_jax are in "
                "configs/"
            )
        )
    except (
        AttributeError,
        KeyError,
    ) as error:  # ml_collections, on a key that the config does not have
        key = re.search(r"\\?'(\w+)\\?'", str(error))
        meant = re.search(r'Did you mean "(\w+)"', str(error))
        if not key:
            raise
        sys.exit(
            _sentence(
                f"the config has no key {key[1]!r}"
                + (f"; did you mean {meant[1]!r}?" if meant else "")
            )
        )


def usage(command: str) -> str:
    """The help text of a command: what its module says, and its flags."""
    name = command.split()[-1] if command.startswith("vqd ") else "train"
    out = [(sys.modules[f"vqd_jax.cli.{name}"].__doc__ or "").strip(), "", "flags:"]
    ours = [
        flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith("vqd_jax.cli.")
        for flag in defined
    ]
    for flag in sorted(ours, key=lambda flag: flag.name):
        default = f" (default: {flag.default})" if flag.default not in (None, "", [], False) else ""
        out.append(
            textwrap.fill(
                f"--{flag.name}  {' '.join((flag.help or '').split())}{default}",
                100,
                initial_indent="  ",
                subsequent_indent="      ",
            )
        )
    return "\n".join(out)


def _silence() -> None:
    """What is left to be said on standard output is dropped, or Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
