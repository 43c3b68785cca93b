"""A table engine for foreign weights: rules say where each source array goes and how it is turned.

Every source key is used or explicitly dropped, every target leaf is filled, shapes are equal, or there is an error
that names the keys.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vqd_jax.errors import UserError

_SHOWN = 4


def identity(x: np.ndarray) -> np.ndarray:
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """PyTorch (out, in) -> Flax (in, out)."""
    return x.T


def conv(x: np.ndarray) -> np.ndarray:
    """PyTorch OIHW -> Flax HWIO; also right for depthwise kernels (C, 1, h, w) -> (h, w, 1, C)."""
    return x.transpose(2, 3, 1, 0)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a table.

    source: regular expression of whole source keys; target: path "a/b/kernel", which may use the groups (\\1).
    Several sources of one target are ordered by the integer `part` (also a template) and put together by `join`,
    for example `part="0", join=concatenate` for fused projections or `part=r"\\1", join=np.stack` for stacked layers.
    """

    source: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray] = identity
    part: str | None = None
    join: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None


def convert(source: Mapping[str, np.ndarray], rules: Sequence[Rule], target: Mapping[str, Any], *,
            drop: Sequence[str] = (), name: str) -> dict[str, Any]:
    """Fill the tree `target` (of anything with shape and dtype, such as `jax.eval_shape` gives) from `source`.

    drop: patterns of source keys that are known and not wanted. name: of the weights, for messages.
    Returns numpy arrays of the target's dtypes. Raises UserError naming keys that are unknown, missing or misshapen.
    """
    leaves = flatten_dict(target, sep="/")
    pieces: dict[str, dict[int, np.ndarray]] = {}
    rule_of: dict[str, Rule] = {}
    unknown = []
    for key, array in source.items():
        if any(re.fullmatch(pattern, key) for pattern in drop):
            continue
        for rule in rules:
            if match := re.fullmatch(rule.source, key):
                break
        else:
            unknown.append(key)
            continue
        path = match.expand(rule.target)
        part = 0 if rule.part is None else int(match.expand(rule.part))
        if part in pieces.setdefault(path, {}):
            raise UserError(f"{name}: key {key!r} is the second one for {path!r}; one is accepted")
        try:
            pieces[path][part] = rule.transform(array)
        except ValueError as error:
            raise UserError(f"{name}: key {key!r} has shape {array.shape}, which does not fit {path!r}") from error
        rule_of[path] = rule
    if unknown:
        raise UserError(f"{name}: the file has {_listed(unknown)} that no rule of this format knows")
    if missing := sorted(leaves.keys() - pieces.keys()):
        raise UserError(f"{name}: the file has nothing for {_listed(missing)} of the model")
    if surplus := sorted(pieces.keys() - leaves.keys()):
        raise UserError(f"{name}: the file has weights for {_listed(surplus)}, which the model does not have")
    return unflatten_dict({path: _leaf(pieces[path], rule_of[path], leaf, f"{name}: {path!r}")
                           for path, leaf in leaves.items()}, sep="/")


def _leaf(pieces: dict[int, np.ndarray], rule: Rule, leaf: Any, where: str) -> np.ndarray:
    arrays = [pieces[part] for part in sorted(pieces)]
    if rule.join is not None and sorted(pieces) != list(range(len(pieces))):
        raise UserError(f"{where} has only the parts {sorted(pieces)}")
    if rule.join is not None:
        try:
            array = rule.join(arrays)
        except ValueError as error:
            shapes = [a.shape for a in arrays]
            raise UserError(f"{where}: its parts have the shapes {shapes}, which do not join") from error
    else:
        array, = arrays
    if array.shape != tuple(leaf.shape):
        raise UserError(f"{where} has shape {array.shape} in the file and {tuple(leaf.shape)} in the model")
    if not np.issubdtype(np.asarray(array).dtype, np.number) and array.dtype.name != "bfloat16":
        raise UserError(f"{where} holds {array.dtype} in the file; numbers are accepted")
    return np.ascontiguousarray(array, dtype=leaf.dtype).reshape(array.shape)


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:_SHOWN]))
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more keys"
