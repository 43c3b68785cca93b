"""Converts foreign weights by tables of rules, which map source keys to target leaves and transform
the arrays.

Every source key must be used or explicitly dropped, every target leaf filled and every shape equal;
errors name the keys. `invert` applies the same rules in the other direction.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params

MOST = 200  # layers
_SHOWN = 4
Transform = Callable[[np.ndarray], np.ndarray]


def identity(x: np.ndarray) -> np.ndarray:
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """PyTorch (out, in) -> Flax (in, out)."""
    return x.T


def conv(x: np.ndarray) -> np.ndarray:
    """PyTorch OIHW -> Flax HWIO; also right for depthwise kernels (C, 1, h, w) -> (h, w, 1, C)."""
    return x.transpose(2, 3, 1, 0)


def pointwise(x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution (O, I, 1, 1) or linear layer (O, I) -> a linear layer (I, O)."""
    if x.ndim == 4 and x.shape[2:] != (1, 1):
        raise ValueError("not a 1x1 convolution")
    return x.reshape(x.shape[:2]).T


_INVERSES = {
    identity: identity,
    linear: linear,
    pointwise: linear,
    conv: lambda x: x.transpose(3, 2, 0, 1),
}


class NotFiniteError(UserError):
    """Weights that are NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a table.

    Attributes:
      source: regular expression that matches full source keys.
      target: path "a/b/kernel", in which \\1 stands for the first group.
      transform: of the source array.
      part: integer, also a template, that orders several sources of one target.
      join: function that joins such sources, for example `part="0", join=concatenate` for fused
        projections or `part=r"\\1", join=np.stack` for stacked layers.
    """

    source: str
    target: str
    transform: Transform = identity
    part: str | None = None
    join: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None


def layer_rules(source: str, target: str, transform: Transform = linear) -> list[Rule]:
    """Rules for a linear layer or convolution, whose keys begin with the pattern `source`."""
    return [
        Rule(source=rf"{source}\.weight", target=f"{target}/kernel", transform=transform),
        Rule(source=rf"{source}\.bias", target=f"{target}/bias"),
    ]


def norm_rules(source: str, target: str) -> list[Rule]:
    """Rules for gain and bias of a norm, whose keys begin with the pattern `source`."""
    return [
        Rule(source=rf"{source}\.weight", target=f"{target}/scale"),
        Rule(source=rf"{source}\.bias", target=f"{target}/bias"),
    ]


def convert(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    target: Params,
    *,
    drop: Sequence[str] = (),
    name: str,
    finite: bool = True,
) -> dict[str, Any]:
    """Numpy arrays for the leaves of `target`, a tree of anything with shape and dtype.

    `drop` has patterns of source keys to ignore, `name` is that of the weights, for messages.
    UserError names keys that are unknown, missing or have a wrong shape, and, if the weights must
    be `finite`, those with other numbers.
    """
    leaves = flatten_dict(target, sep="/")
    pieces: dict[str, dict[int, np.ndarray]] = {}
    rule_of: dict[str, Rule] = {}
    used = {}
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
            raise UserError(f"{name}: key {key!r} is the second for {path!r}, which takes one")
        try:
            pieces[path][part] = rule.transform(array)
        except ValueError as error:
            raise UserError(
                f"{name}: key {key!r} has shape {array.shape}, which does not fit {path!r}"
            ) from error
        rule_of[path], used[key] = rule, array
    if unknown:
        raise UserError(f"{name}: the file has {_listed(unknown)}, unknown in this format")
    if missing := sorted(leaves.keys() - pieces.keys()):
        raise UserError(f"{name}: the file has nothing for {_listed(missing)} of the model")
    if surplus := sorted(pieces.keys() - leaves.keys()):
        raise UserError(
            f"{name}: the file has weights for {_listed(surplus)}, which the model does not have"
        )
    with np.errstate(over="ignore"):
        arrays = {
            path: _leaf(pieces[path], rule_of[path], leaf, f"{name}: {path!r}")
            for path, leaf in leaves.items()
        }
    if finite:
        check_finite(used, name)
    return unflatten_dict(arrays, sep="/")


def check_finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """NotFiniteError if numbers are NaN or infinite, or are so in float32."""
    bad = {}
    for key, array in arrays.items():
        if array.dtype.kind not in "biu":
            with np.errstate(over="ignore"):
                numbers = np.asarray(array, np.float32)
            count = array.size - np.count_nonzero(np.isfinite(numbers))
            if count:
                bad[key] = count
    if bad:
        key, count = next(iter(bad.items()))
        first = f", the first of {len(bad):,} such arrays" if len(bad) > 1 else ""
        raise NotFiniteError(
            f"{name}: {count:,} of the {arrays[key].size:,} numbers in {key!r} are NaN or infinite"
            f"{first}"
        )


def invert(tree: Params, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The source that `convert` turns into `tree`, by the first rule for each leaf, with names as
    `inverse` gives them.

    Joined leaves are split evenly along the last axis; 1x1 convolutions become linear layers
    (O, I).
    """
    patterns = [(rule, *inverse(rule.source, rule.target)) for rule in rules]
    out = {}
    for path, array in flatten_dict(tree, sep="/").items():
        matches = [
            (rule, match.expand(name))
            for rule, pattern, name in patterns
            if (match := re.fullmatch(pattern, path))
        ]
        matches = [pair for pair in matches if pair[0].part is not None] or matches[:1]
        if not matches:
            raise ValueError(f"no rule fills {path!r}")
        for (rule, key), part in zip(matches, np.split(array, len(matches), axis=-1), strict=True):
            out[key] = np.ascontiguousarray(_INVERSES[rule.transform](part))
    return out


def inverse(pattern: str, template: str) -> tuple[str, str]:
    r"""The pattern and template that invert those of `re.sub`: takes the first of alternatives, and
    optional characters as present.

    r"(?:ab|c)\.(\d+)\.e?" and r"\1/f" give r"(\d+)/f" and r"ab.\1.e".
    """
    groups, numbers = re.findall(r"\((?!\?)[^()]*\)", pattern), itertools.count(1)
    name = re.sub(r"\((?!\?)[^()]*\)", lambda _: rf"\{next(numbers)}", pattern)
    while (simpler := re.sub(r"\(\?:([^()|]*)(?:\|[^()]*)?\)", r"\1", name)) != name:
        name = simpler
    name = name.partition("|")[0].lstrip("^").replace("?", "").replace(r"\.", ".")
    return re.sub(r"\\\\(\d)", lambda match: groups[int(match[1]) - 1], re.escape(template)), name


def numbered(pattern: str, source: Mapping[str, Any]) -> int:
    """How many different numbers the first group of a pattern of keys has; `few` of them."""
    return few(len({match[1] for key in source if (match := re.match(pattern, key))}))


def few(layers: int) -> int:
    """The number of layers, which are traced one by one; UserError for more than MOST."""
    if layers > MOST:
        raise UserError(f"the weights have {layers:,} layers; at most {MOST} are accepted")
    return layers


def rename(
    source: Mapping[str, np.ndarray], names: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Applies each (pattern, template) of `re.sub` to the keys, in order."""
    out = {}
    for key, array in source.items():
        for pattern, template in names:
            key = re.sub(pattern, template, key)
        out[key] = array
    return out


def _leaf(pieces: dict[int, np.ndarray], rule: Rule, leaf: Any, where: str) -> np.ndarray:
    arrays = [pieces[part] for part in sorted(pieces)]
    if rule.join is not None:
        if sorted(pieces) != list(range(len(pieces))):
            raise UserError(f"{where} has only the parts {sorted(pieces)}")
        try:
            array = rule.join(arrays)
        except ValueError as error:
            shapes = [a.shape for a in arrays]
            raise UserError(
                f"{where}: its parts have the shapes {shapes}, which do not join"
            ) from error
    else:
        (array,) = arrays
    if array.shape != tuple(leaf.shape):
        raise UserError(
            f"{where} has shape {array.shape} in the file and {tuple(leaf.shape)} in the model"
        )
    if not np.issubdtype(np.asarray(array).dtype, np.number) and array.dtype.name != "bfloat16":
        raise UserError(f"{where} holds {array.dtype} in the file, not numbers")
    return np.ascontiguousarray(array, dtype=leaf.dtype).reshape(array.shape)


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:_SHOWN]))
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more keys"
