"""Small text files from outside (JSON, YAML), of bounded length, depth and repetition, and their
values in messages.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from vqd_jax.core.errors import UserError, printable
from vqd_jax.core.file_kinds import kind
from vqd_jax.core.files import read_bounded

JSON = 2**24  # bytes; the vocabulary of CLIP has 1 MB
YAML = 2**16  # bytes; the config of a released model has a few thousand
REPEATED = 2**18  # nodes and characters of a YAML file, with aliases written out
DEPTH = 50  # levels of a YAML file, with aliases written out
SHOWN = 99  # characters of a value in a message


def shown(value: Any) -> str:
    """A value from a file for a message, on one line: short numbers and texts in full, the type of
    others, which might never end.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}…")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return repr(value) if bits <= 128 else f"a number of {bits:,} bits"
    return f"a {type(value).__name__}"


def read_text(path: str | Path, most: int) -> str:
    """The text of a file of at most `most` bytes; UserError for others, such as web pages."""
    content = read_bounded(path, most)
    if found := kind(content):
        raise UserError(f"{path} is {found}")
    try:
        return content.decode("utf-8")
    except ValueError as error:
        raise UserError(f"{path} is not text ({error})") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; UserError if there is none."""
    text = read_text(path, JSON)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not an object")
    return values


def read_yaml(path: str | Path) -> Any:
    """The values in a YAML file, whose tuples are accepted; UserError if it is another file or of
    unreasonable size with its aliases written out.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader that accepts Python's tuples."""

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None:
                _size(node, {})
            return node

    Loader.add_constructor(
        "tag:yaml.org,2002:python/tuple",
        lambda loader, node: tuple(loader.construct_sequence(node)),
    )
    text = read_text(path, YAML)
    try:
        return yaml.load(text, Loader)
    except Exception as error:  # its constructors raise errors of many kinds
        why = printable(" ".join(str(error).split()))
        raise UserError(f"{path} is not YAML: {why}") from error


def _size(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(nodes and characters, levels) of a node, with aliases written out. ValueError for too many,
    and for a node within itself.
    """
    if id(node) not in known:
        known[id(node)] = REPEATED + 1, 0
        size, levels = 1, 0
        if isinstance(node.value, str):
            size += len(node.value)
        else:
            pairs = node.value if node.id == "mapping" else [node.value]
            for part in itertools.chain.from_iterable(pairs):
                inner, below = _size(part, known)
                size, levels = size + inner, max(levels, below + 1)
        known[id(node)] = size, levels
    size, levels = known[id(node)]
    if size > REPEATED:
        raise ValueError(f"its aliases stand for more than {REPEATED:,} characters")
    if levels > DEPTH:
        raise ValueError(f"more than {DEPTH} levels")
    return size, levels
