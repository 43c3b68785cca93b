"""What every command shares: its flags and help, errors as one sentence, and the settings of its
process.

A command is a module of `vqd_jax.cli` with a docstring (its help), `define_flags(options)`,
`main(options, arguments)`, and optionally ARGUMENTS (names of its positional arguments) and AGAIN
(what the same command does after an interruption). Heavy imports belong into `main`, so that help
is fast.
"""

import errno
import faulthandler
import importlib
import io
import logging as standard_logging
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import flags, logging

from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError, one_line
from vqd_jax.core.shipped import config_names, config_path

ANEW = "starts over"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a full disk, quota or file size limit
WIDTH, COLUMN = 100, 26  # of the help, and of the texts about flags in it
METAVARS = {"int": "N", "float": "X"}  # by type; TEXT for the others


def start(name: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a command as the one work of this process, and ends it with the command's status."""
    try:
        command, options, positional = parse(name, arguments)
        set_up_process()
        from vqd_jax.runtime import distributed
    except KeyboardInterrupt:  # during imports, before anything was done
        sys.exit(_interrupted(ANEW))
    except BrokenPipeError:  # of the help
        _silence()
        sys.exit(1)

    with distributed.exit_on_error():
        sys.exit(
            status(lambda: command.main(options, positional), again=getattr(command, "AGAIN", ANEW))
        )


def make_gpus_deterministic() -> None:
    """Makes XLA compile programs for GPUs whose sums have one order. To be called before devices
    are used.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()


def set_up_process() -> None:
    """Settings of the whole process, which only commands make, never the library."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures are files; there may be no display
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it remarks that torch is missing
    # Pillow warns about odd files, which are decoded all the same or refused with a reason
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):  # file names may hold bytes that are no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    faulthandler.enable()
    flags.FLAGS(sys.argv[:1])  # flags of libraries keep their defaults
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_on_one_line)
    # it prints a traceback of every failed request; the error itself is raised and told
    standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)

    from vqd_jax.runtime.compile_cache import enable_compilation_cache
    from vqd_jax.runtime.orbax_io import quiet_orbax

    enable_compilation_cache()
    quiet_orbax()


def _on_one_line(record: standard_logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def parse(
    name: str, arguments: Sequence[str]
) -> tuple[ModuleType, flags.FlagValues, Sequence[str]]:
    """(module, options, positional arguments) of a command line. SystemExit after --help, and with
    one sentence for flags that cannot be read.
    """
    command = importlib.import_module(f"vqd_jax.cli.{name}")
    options = flags.FlagValues()
    command.define_flags(options)
    asked = {"-h", "--help"} & {*arguments}
    if asked:
        print(usage(name, command, options))
        arguments = [argument for argument in arguments if argument not in asked]
        if "config" not in options or not any("config" in argument for argument in arguments):
            sys.exit(0)
    try:
        if asked:
            _read(options, command, [f"vqd {name}", *arguments])
            print(_config_help(options))
            sys.exit(0)
        return command, options, _read(options, command, [f"vqd {name}", *arguments])
    except UserError as error:
        sys.exit(_sentence(error))
    except flags.Error as error:
        sys.exit(_sentence(f"{_plain(error)} (`vqd {name} --help` lists the flags)"))


def status(main: Callable[[], None], *, again: str = ANEW) -> int:
    """The exit status of `main`: 0, 2 after a user's error, which is one sentence on standard
    error, or 128 + the number of the signal that interrupted it. `again` says what the same command
    does then.
    """
    from vqd_jax.runtime import signals

    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        return _sentence(error)
    except BrokenPipeError:
        _silence()
        return 1
    except OSError as error:  # reading and writing what the user named
        if error.filename is None and error.errno not in FULL:
            raise
        if error.filename is None:  # only standard output has no name
            _silence()
        return _sentence(f"{error.filename or 'standard output'}: {error.strerror}")
    except KeyboardInterrupt:
        return _interrupted(again)
    except signals.Terminated:
        print(f"\nterminated; the same command {again}", file=sys.stderr)
        return signals.status()
    return 0


def _interrupted(again: str) -> int:
    print(f"\ninterrupted; the same command {again}", file=sys.stderr)
    return 128 + signal.SIGINT


def usage(name: str, command: ModuleType, options: flags.FlagValues) -> str:
    """The help of a command: a usage line, its docstring, and its flags with their defaults."""
    line = " ".join(["vqd", name, *getattr(command, "ARGUMENTS", ()), "[--flag=value ...]"])
    rows = [_row(options[flag]) for flag in sorted(options)]
    return "\n".join([f"usage: {line}", "", (command.__doc__ or "").strip(), "", "flags:", *rows])


def _config_help(options: flags.FlagValues) -> str:
    """The keys of the config that is given."""
    from vqd_jax.config.keys import key_rows  # slow to import

    path, variant = config_file(options)
    named = f"{Path(path).stem}:{variant}" if variant else Path(path).stem
    rows = [
        _columns(left, text) if left.startswith("--") else f"\n{left} {text}".rstrip()
        for left, text in key_rows(options.config)
    ]
    return "\n".join([f"\nkeys of the config {named}:", "", *rows])


def _row(flag: flags.Flag) -> str:
    """A flag's line in the help."""
    text = " ".join(flag.help.split())
    choices = "|".join(getattr(flag.parser, "enum_values", None) or ())
    text = text.removeprefix(f"<{choices}>: ")
    if flag.boolean:
        left = f"  --[no]{flag.name}"
    elif len(choices) < WIDTH - COLUMN:
        left = f"  --{flag.name}={choices or METAVARS.get(flag.flag_type(), 'TEXT')}"
    else:
        left = f"  --{flag.name}=NAME"
        text += f" (one of {choices.replace('|', ', ')})"
    text = text.removesuffix("; repeat this option to specify a list of values")
    if flag.default not in (None, "", []):
        text += f" (default: {flag.default})"
    return _columns(left, text)


def _columns(left: str, text: str) -> str:
    """Two columns; where the left one is too wide, the right one begins below it."""
    lines = textwrap.wrap(text, WIDTH - COLUMN)
    if lines and len(left) < COLUMN:
        left, *lines = left.ljust(COLUMN) + lines[0], *lines[1:]
    return f"\n{' ' * COLUMN}".join([left, *lines])


def _read(options: flags.FlagValues, command: ModuleType, argv: list[str]) -> Sequence[str]:
    """Parses the command line into `options` and returns the positional arguments. UserError for a
    config file that cannot be read or a config key that does not exist.
    """
    try:
        positional = options(_with_config_paths(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UserError("--config=FILE must come before --config.SECTION.KEY=VALUE") from None
        raise
    except OSError as error:  # ml_collections, where the file of --config does not exist
        missing = re.search(r"Attempted \[.*\]:\n\s+(\S+)\n.*No such file", str(error))
        if not missing:
            raise
        raise UserError(_no_config(missing[1])) from None
    except (AttributeError, KeyError) as error:  # ml_collections, for --config.KEY
        key = re.search(r"\\?'(\w+)\\?'", str(error))
        if not key:
            raise
        meant = re.search(r'Did you mean "(\w+)"', str(error))
        raise UserError(
            f"the config has no key {key[1]!r}" + (f"; did you mean {meant[1]!r}?" if meant else "")
        ) from None
    most = len(getattr(command, "ARGUMENTS", ()))
    if len(positional) > most:
        raise UserError(
            f"unexpected argument {positional[most]!r}; options are written --name=value"
        )
    return positional


def _with_config_paths(argv: list[str]) -> list[str]:
    """The command line with the path of a shipped config in place of its name."""
    out = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            at, named = (i, value) if equals else (i + 1, "".join(argv[i + 1 : i + 2]))
            path, colon, variant = named.partition(":")
            if path:
                out[at] = f"{flag}=" * bool(equals) + config_path(path) + colon + variant
    return out


def config_file(options: flags.FlagValues) -> tuple[str, str]:
    """(FILE, VARIANT) of --config=FILE:VARIANT. UserError without the flag or without that file."""
    from ml_collections import config_flags  # slow to import

    flag = options["config"]
    named = config_flags.get_config_filename(flag) if flag.present else ""
    path, _, variant = named.partition(":")
    if not path:
        raise UserError("--config is missing; for a first run take --config=emoji")
    if not Path(path).is_file():
        raise UserError(_no_config(path))
    return path, variant


def training_workdir(options: flags.FlagValues) -> str:
    """--workdir, or runs/FILE-VARIANT for --config=FILE:VARIANT. UserError without that file, or
    for an address that is none of a bucket.
    """
    path, variant = config_file(options)
    workdir = options.workdir or f"runs/{Path(path).stem}{f'-{variant}' if variant else ''}"
    as_path(workdir)
    return workdir


def _no_config(path: str) -> str:
    return f"there is no config file {path}; vqd_jax comes with {', '.join(config_names())}"


def _plain(error: flags.Error) -> str:
    """absl's message as the other messages are written: one line, no full stop."""
    unknown = re.match(
        r"Unknown command line flag '(.*)'(?:\. Did you mean: (\S+) \?)?", str(error)
    )
    if unknown:
        hint = f"; did you mean --{unknown[2]}?" if unknown[2] else ""
        return f"there is no flag --{unknown[1]}{hint}"
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _silence() -> None:
    """Drops what is left to be written to standard output; Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: object) -> int:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
