"""What a compiled program says of itself: memory, collectives, kernels, and on a TPU the cycles
that its compiler expects.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

COLLECTIVES = {
    "kAllReduce": "all-reduce",
    "kAllGather": "all-gather",
    "kReduceScatter": "reduce-scatter",
    "kAllToAll": "all-to-all",
    "kRaggedAllToAll": "ragged-all-to-all",
    "kCollectivePermute": "collective-permute",
    "kCollectiveBroadcast": "collective-broadcast",
}
GIVEN = ("kParameter", "kConstant", "kTuple", "kGetTupleElement", "kBitcast", "kWhile", "kCall")
LISTED = 8  # of the largest arrays
KERNELS = re.compile(r'custom_call_target="((?:tpu_custom_call|__cudnn|__cublas|__gpu\$)[^"]*)"')
UNKNOWN_CYCLES = 2**63 - 1  # what the compiler of a v6e says of a kernel
_ENTRY = re.compile(r"^ENTRY %?([\w.\-]+)", re.MULTILINE)
_RESULT = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) [a-z][\w\-]*\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device; `in_place` of the outputs reuse the memory of donated arguments."""

    arguments: int
    outputs: int
    in_place: int
    temporaries: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.in_place + self.temporaries


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, as its compiler describes it.

    Attributes:
      memory: on each device.
      collectives: (times, bytes of their operands on each device, all together) by kind.
      kernels: how often each kernel of a library, or of Pallas, runs.
      cycles: of a TPU, without its kernels, which the compiler does not estimate; None elsewhere.
      largest: the largest arrays that are computed and written to memory, "bf16[8,1024,1024]" and
        their bytes.
    """

    memory: Memory
    collectives: dict[str, tuple[int, int]]
    kernels: dict[str, int]
    cycles: int | None
    largest: dict[str, int]

    @classmethod
    def read(cls, compiled: jax.stages.Compiled) -> "Program":
        """Bodies of loops count as often as they run, once where that is not known."""
        stats = compiled.memory_analysis()
        memory = Memory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
        )
        exchanged: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        kernels: collections.Counter[str] = collections.Counter()
        cycles, sizes = 0, {}
        for x in instructions(compiled):
            if kind := COLLECTIVES.get(x.operation.removesuffix("Start")):
                exchanged[kind][0] += x.times
                exchanged[kind][1] += x.times * sum(map(_bytes, x.operands))
            if not x.fused and x.operation not in GIVEN:
                for dtype, dims in x.result:
                    name = f"{dtype}[{','.join(map(str, dims))}]"
                    sizes[name] = _bytes([(dtype, dims)])
            if found := KERNELS.search(x.text):
                kernels[found[1]] += x.times
            found = _CYCLES.search(x.text)
            if found and not x.fused and int(found[1]) < UNKNOWN_CYCLES:
                cycles += x.times * int(found[1])
        collective = {kind: (count, size) for kind, (count, size) in sorted(exchanged.items())}
        largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:LISTED])
        return cls(memory, collective, dict(sorted(kernels.items())), cycles or None, largest)


Dims = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      operation: such as "kDot".
      result, operands: the arrays that each consists of, as (dtype in HLO, sizes).
      times: how often it runs.
      fused: whether it is part of a fused one.
      loops: names of the bodies of the loops around it.
    """

    operation: str
    text: str
    result: list[tuple[str, Dims]]
    operands: list[list[tuple[str, Dims]]]
    times: int
    fused: bool
    loops: tuple[str, ...]


def instructions(compiled: jax.stages.Compiled) -> Iterator[Instruction]:
    """All instructions; bodies of loops count as often as they run, once where that is unknown."""
    for module in compiled.runtime_executable().hlo_modules():
        by_name = {computation.name: computation for computation in module.computations()}
        entry = _ENTRY.search(module.to_string())
        assert entry
        waiting: list[Any] = [(by_name[entry[1]], 1, False, ())]
        while waiting:
            computation, times, fused, loops = waiting.pop()
            handles = [(handle, handle.to_string()) for handle in computation.instructions()]
            results = {handle.name: _arrays(text) for handle, text in handles}
            for handle, text in handles:
                operation = str(handle.opcode).removeprefix("HloOpcode.")
                operands = [results[operand.name] for operand in handle.operands()]
                result = results[handle.name]
                yield Instruction(operation, text, result, operands, times, fused, loops)
                if operation.endswith(("Done", "Update")):
                    continue  # of what a Start has begun
                trips = _trips(text, by_name) if operation == "kWhile" else 1
                names = _CALLED.findall(text)
                for found in _BRANCHES.finditer(text):
                    names += re.findall(r"[\w.\-]+", found[1])
                inside = fused or operation in ("kFusion", "kReduce", "kSort", "kScatter")
                for name in filter(by_name.get, names):
                    around = (*loops, name) if operation == "kWhile" else loops
                    waiting.append((by_name[name], times * trips, inside, around))


def _trips(loop: str, computations: dict[str, Any]) -> int:
    """How often a loop runs: what the compiler noted, or else the constant below which the
    condition keeps the index, which JAX counts from 0. 1 if neither is there.
    """
    if found := _TRIPS.search(loop):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    assert condition
    texts = [x.to_string() for x in computations[condition[1]].instructions()]
    limits = [x for text in texts for x in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)]
    below = any("direction=LT" in text for text in texts)
    return int(limits[0]) if below and len(limits) == 1 else 1


def _arrays(text: str) -> list[tuple[str, Dims]]:
    """What an instruction results in, which jax 0.10 gives as text only."""
    found = _RESULT.match(text)
    assert found, text
    sizes = lambda dims: tuple(int(n) for n in dims.split(",") if n)
    return [(dtype, sizes(dims)) for dtype, dims in _ARRAY.findall(found[1])]


def _bytes(arrays: list[tuple[str, Dims]]) -> int:
    """Of these arrays. HLO's names of dtypes have their bits, except for pred, which has 8."""
    bits = lambda dtype: int(found[0]) if (found := re.search(r"\d+", dtype)) else 8
    return sum(math.prod(dims) * -(-bits(dtype) // 8) for dtype, dims in arrays)
