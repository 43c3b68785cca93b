"""The collectives and matrix products of a compiled program, read from the text of its HLO.

An instruction in the body of a loop counts as often as the loop runs. A program for CPUs is counted
as accelerators would run it: their compilers send bfloat16 as it is and not as float32, and turn an
all-reduce of which each device keeps only its part into a reduce-scatter.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
HALF = {"bf16", "f16"}
MOVES = {  # operations that change only the form of a value
    "bitcast",
    "copy",
    "transpose",
    "reshape",
    "slice",
    "dynamic-slice",
    "broadcast",
    "convert",
}
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLS = r"calls=%?([\w.\-]+)"
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """Equal exchanges in a program.

    Attributes:
      kind: one of KINDS.
      axes: of the mesh, along which the devices of a group differ.
      size: bytes of the operand on each device.
      groups: positions in the mesh of the devices that exchange with each other; for a permutation
        the pairs (source, target).
      count: how often one run of the program does it.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    groups: tuple[tuple[int, ...], ...]
    count: int

    @property
    def moved(self) -> float:
        """Bytes that each device sends in all `count` exchanges, around a ring of its group.

        In a group of g an all-reduce sends 2 (g - 1) / g times the operand, an all-gather g - 1
        times, a permutation or broadcast once, the others (g - 1) / g times.
        """
        g = len(self.groups[0])
        share = {
            "all-reduce": 2 * (g - 1) / g,
            "all-gather": g - 1.0,
            "collective-permute": 1.0,
            "collective-broadcast": 1.0,
        }
        return self.count * self.size * share.get(self.kind, (g - 1) / g)


@dataclasses.dataclass(frozen=True)
class Instruction:
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes


@dataclasses.dataclass
class Computation:
    lines: dict[str, Instruction]
    root: str = ""

    @functools.cached_property
    def users(self) -> dict[str, list[str]]:
        """Value -> the instructions that use it."""
        users = collections.defaultdict(list)
        for name, line in self.lines.items():
            for operand in dict.fromkeys(line.operands):
                users[operand].append(name)
        return dict(users)

    def moved(self, name: str) -> str:
        """The last value that is `name` in another form, following its only user."""
        while len(users := self.users.get(name, [])) == 1 and self.lines[users[0]].op in MOVES:
            name = users[0]
        return name


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of an HLO module by name, and how often each of them runs."""

    computations: dict[str, Computation]
    runs: dict[str, int]

    @classmethod
    def read(cls, text: str) -> "Program":
        """Parses the result of `jax.stages.Compiled.as_text`."""
        computations, entry, here = {}, "", None
        for line in text.splitlines():
            if found := _LINE.match(line):
                root, name, type_, op, rest = found.groups()
                operands = re.split(r"\)(?:,|$)", rest, maxsplit=1)[0]
                here.lines[name] = Instruction(
                    type_, op, tuple(re.findall(r"%([\w.\-]+)", operands)), rest
                )
                here.root = name if root else here.root
            elif found := _HEAD.match(line):
                here = computations[found[2]] = Computation({})
                entry = found[2] if found[1] else entry
        runs = collections.Counter()
        waiting = [(entry, 1)]
        while waiting:
            name, times = waiting.pop()
            runs[name] += times
            for line in computations[name].lines.values():
                waiting += [(callee, times * often) for callee, often in _calls(line, computations)]
        return cls(computations, dict(runs))

    def collectives(self, mesh: dict[str, int]) -> list[Collective]:
        """All exchanges, equal ones merged, largest first; `mesh` has its axes and their sizes."""
        counts = collections.Counter()
        for where, name, line in self._each(lambda op: op.removesuffix("-start") in KINDS):
            kind, groups, sizes = (
                line.op.removesuffix("-start"),
                _groups(line.rest, math.prod(mesh.values())),
                collections.Counter(),
            )
            for operand, result in zip(line.operands, self._results(where, name), strict=True):
                cut = kind == "all-reduce" and self._ends(
                    where, result, lambda line: line.op == "dynamic-slice"
                )
                sizes["reduce-scatter" if cut else kind] += self._size(
                    where, operand, result, reduced="reduce" in kind
                )
            for kind, size in sizes.items():
                if len(groups[0]) > 1:
                    counts[kind, _axes(groups, mesh), size, groups] += self.runs[where]
        return sorted(
            (Collective(*key, count) for key, count in counts.items()), key=lambda c: (-c.moved, c)
        )

    def products(self) -> int:
        """FLOP of the matrix products and convolutions; a multiply-add is two."""
        total = 0
        for where, _, line in self._each(lambda op: op in ("dot", "convolution")):
            shapes = [
                _shapes(self.computations[where].lines[name].type)[0][1] for name in line.operands
            ]
            if line.op == "dot":
                inner = math.prod(
                    shapes[0][int(i)]
                    for i in _attribute(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest).split(",")
                    if i
                )
            else:
                labels = _attribute(r"dim_labels=\w+_(\w+)->", line.rest)
                inner = math.prod(shapes[1]) // shapes[1][labels.index("o")]
            total += 2 * math.prod(_shapes(line.type)[0][1]) * inner * self.runs[where]
        return total

    def _each(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str, Instruction]]:
        """(computation, name, instruction) of every operation that is `wanted` and runs."""
        for where in self.runs:
            yield from (
                (where, name, line)
                for name, line in self.computations[where].lines.items()
                if wanted(line.op)
            )

    def _results(self, where: str, name: str) -> list[str]:
        """The names of a collective's results, one for each operand; "" if nothing uses it."""
        here = self.computations[where]
        if here.lines[name].op.endswith("-start"):
            name = next(
                (user for user in here.users[name] if here.lines[user].op.endswith("-done")), name
            )
        count = (
            len(here.lines[name].operands)
            if not here.lines[name].op.endswith("-done")
            else len(_shapes(here.lines[name].type))
        )
        if not here.lines[name].type.startswith("("):
            return [name]
        parts = {
            int(_attribute(r"index=(\d+)", here.lines[user].rest)): user
            for user in here.users[name]
        }
        return [parts.get(i, "") for i in range(count)]

    def _ends(self, where: str, name: str, wanted: Callable[[Instruction], bool]) -> bool:
        """Whether every use of a value leads to a `wanted` instruction, through changes of form
        only.
        """
        here = self.computations[where]

        def leads(user: str) -> bool:
            line = here.lines[user]
            if line.op == "fusion":
                inner = _attribute(_CALLS, line.rest)
                inside = self.computations[inner]
                places = tuple(
                    f"{i})" for i, operand in enumerate(line.operands) if operand == name
                )
                names = [
                    x
                    for x, of in inside.lines.items()
                    if of.op == "parameter" and of.rest.startswith(places)
                ]
                on = lambda x: inside.moved(x) == inside.root and self._ends(where, user, wanted)
                return all(self._ends(inner, x, wanted) or on(x) for x in names)
            return wanted(line) or line.op in MOVES and self._ends(where, user, wanted)

        return name in here.users and all(map(leads, here.users[name]))

    def _size(self, where: str, operand: str, result: str, *, reduced: bool) -> int:
        """Bytes of a collective's operand. It counts as bfloat16 if its result is converted to that
        at once or, when nothing is reduced, if it was that before.
        """
        (dtype, shape), *_ = _shapes(self.computations[where].lines[operand].type)
        rounded = lambda line: line.op == "convert" and _shapes(line.type)[0][0] in HALF
        half = dtype == "f32" and (
            not reduced
            and HALF & {*self._dtypes(where, operand)}
            or self._ends(where, result, rounded)
        )
        return math.prod(shape) * (2 if half else _width(dtype))

    def _dtypes(self, where: str, name: str) -> Iterator[str]:
        """The dtypes of a value and of those whose form was changed to make it."""
        line = self.computations[where].lines[name]
        yield from (dtype for dtype, _ in _shapes(line.type)[:1])
        if line.op == "fusion":
            inner = _attribute(_CALLS, line.rest)
            yield from self._dtypes(inner, self.computations[inner].root)
        elif line.op in MOVES and line.operands:
            yield from self._dtypes(where, line.operands[0])


def _calls(line: Instruction, computations: dict[str, Computation]) -> Iterator[tuple[str, int]]:
    """(computation, times) for each that an instruction runs; every branch counts once."""
    if line.op == "while":
        body, condition = (
            _attribute(rf"{key}=%?([\w.\-]+)", line.rest) for key in ("body", "condition")
        )
        known = re.search(r"known_trip_count\W+n\W+(\d+)", line.rest)
        limits = [
            int(n)
            for x in computations[condition].lines.values()
            for n in re.findall(r"^(\d+)\)", x.rest)
            if x.op == "constant"
        ]
        yield body, int(known[1]) if known else limits[0] if len(limits) == 1 else 1
    elif line.op not in ("async-update", "async-done"):  # of what async-start runs
        keys = "calls|branch_computations|true_computation|false_computation" + (
            "|to_apply" if line.op == "call" else ""
        )
        for names in re.findall(rf"\b(?:{keys})=(\{{[^}}]*\}}|%?[\w.\-]+)", line.rest):
            yield from ((name, 1) for name in re.findall(r"[\w.\-]+", names))


def _attribute(pattern: str, text: str) -> str:
    return re.search(pattern, text)[1]


@functools.cache
def _shapes(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of each array in an HLO type."""
    return [
        (dtype, tuple(int(n) for n in sizes.split(",") if n))
        for dtype, sizes in _ARRAY.findall(type_)
    ]


def _width(dtype: str) -> int:
    """Bytes of an element; a dtype's name ends in its bits, also for complex numbers."""
    return 1 if dtype == "pred" else max(int(re.search(r"\d+", dtype)[0]) // 8, 1)


@functools.cache
def _list(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of devices in a collective's attributes, in any of the forms that XLA writes."""
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        groups = np.array(_list(found[1])).reshape(-1, 2)
    elif found := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ):
        sizes = _list(found[3])
        groups = (
            np.arange(math.prod(sizes))
            .reshape(sizes)
            .transpose(_list(found[4]) if found[4] else range(len(sizes)))
        )
        groups = groups.reshape(int(found[1]), int(found[2]))
    elif found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        groups = _of_axes(
            {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}, found[2]
        )
    elif found := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", text):
        return tuple(_list(group) for group in re.findall(r"\{([\d,]+)\}", found[1]))
    else:
        groups = np.arange(devices)[None]
    return tuple(map(tuple, groups.tolist()))


def _of_axes(sizes: dict[str, int], axes: str) -> np.ndarray:
    """Groups along axes of a mesh; `'a':(2)4` is the sub-axis of size 4 after one of size 2."""
    shape, chosen = [], []
    parts = {
        name: (int(before or 1), int(size or 0))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        part = part or size
        chosen += [len(shape) + 1] if name in parts else []
        shape += [before, part, size // (before * part)]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return np.moveaxis(grid, chosen, range(-len(chosen), 0)).reshape(
        -1, math.prod(shape[i] for i in chosen)
    )


def _axes(groups: tuple[tuple[int, ...], ...], mesh: dict[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group differ."""
    names, sizes = (
        [name for name, size in mesh.items() if size > 1],
        [size for size in mesh.values() if size > 1],
    )
    places = (
        np.stack(np.unravel_index(np.array(groups), sizes), -1) if names else np.zeros((1, 1, 0))
    )
    differ = (places != places[:, :1]).any((0, 1))
    return tuple(itertools.compress(names, differ)) if names else ()
