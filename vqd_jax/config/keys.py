"""The keys of a config as help: their values, and the comments of `defaults`."""

import ast
import inspect
import tokenize
from collections.abc import Iterator

from ml_collections import ConfigDict

from vqd_jax.config import defaults


def key_rows(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """(--config.KEY=VALUE with its value in `config`, what it is) of every key, as a shell takes
    it, and (SECTION:, what it is) before those of a section.
    """
    for key, text in comments().items():
        section, _, name = key.rpartition(".")
        value = config[section][name] if section else config[name]
        if isinstance(value, ConfigDict):
            yield f"{name}:", text
        else:
            quoted = f'"{value}"' if isinstance(value, tuple) or value == "" else value
            yield f"--config.{key}={quoted}", text


def comments() -> dict[str, str]:
    """The comment of each section and key, "" without one, in their order: what stands above and
    beside it in the source of `defaults.defaults`.
    """
    source = inspect.getsource(defaults)
    found, alone = {}, set()
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])

    def comment(first: int, last: int) -> str:
        above, line = [], first - 1
        while line in alone:
            above.insert(0, found[line])
            line -= 1
        beside = [found[line] for line in range(first, last + 1) if line in found]
        return " ".join(above + beside)

    return {name: comment(*lines) for name, lines in _keys(ast.parse(source))}


def _keys(module: ast.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, its first and last line) of each section and key."""
    function = next(
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name == "defaults"
    )
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        name, value = node.targets[0].attr, node.value
        if isinstance(value, ast.Call):
            yield name, (node.lineno, node.lineno)
            for keyword in value.keywords:
                yield f"{name}.{keyword.arg}", (keyword.lineno, keyword.end_lineno)
        else:
            yield name, (node.lineno, node.end_lineno)
