"""The roofline of a step on a chip: its time by the data sheet, with a ring for each collective.

  time          = max(compute, memory) + communication
  compute       = FLOP of a device's matrix products / peak
  memory        = (arguments + outputs + 2 x temporaries x micro-batches) / bandwidth: each byte of
                  the state is read and written once, each byte of the temporaries once in every
                  micro-batch
  communication = sum over the collectives of (bytes that a device sends / speed of its path)

Inside a machine, and in a slice of TPUs, the path is the chip's link. GPUs are assumed to be eight
to a machine, each with a 400 Gbit/s adapter: a ring that leaves the machine uses the adapters of
all its members there, and is no faster than the link.
"""

import collections
import dataclasses
import math

from vqd_jax.runtime.hardware import Chip
from vqd_jax.train.cost.compiled import Collective

MACHINE, ADAPTER = 8, 50e9  # GPUs in one machine; bytes/s of a GPU's network adapter, one direction


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Memory of a step on one device, by the compiler; `in_place` are outputs that reuse the memory
    of arguments.
    """

    arguments: int
    outputs: int
    in_place: int
    temporaries: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.in_place + self.temporaries


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Seconds of a step on a chip, and whether it fits into the chip's memory."""

    chip: Chip
    compute: float
    memory: float
    communication: float
    fits: bool

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.communication


def forecast(
    chip: Chip, size: Bytes, products: int, collectives: list[Collective], micro_batches: int = 1
) -> Forecast:
    """The forecast for a step; `products` are its FLOP on each device."""
    traffic = size.arguments + size.outputs + 2 * size.temporaries * micro_batches
    return Forecast(
        chip,
        products / chip.peak,
        traffic / chip.bandwidth,
        math.fsum(c.moved / speed(chip, c) for c in collectives),
        size.peak <= chip.memory,
    )


def speed(chip: Chip, collective: Collective) -> float:
    """Bytes/s at which a device sends to others of its group."""
    if chip.name.startswith("TPU"):
        return chip.link
    together = min(
        min(collections.Counter(device // MACHINE for device in group).values())
        for group in collective.groups
    )
    return (
        chip.link if together == len(collective.groups[0]) else min(chip.link, ADAPTER * together)
    )
