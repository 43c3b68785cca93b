"""How long a step would take on a chip if nothing stood in its way: the ceilings of its data sheet,
and one ring for each collective.

  time          = max(compute, memory) + communication
  compute       = FLOP of the matrix products of a device / peak
  memory        = (arguments + outputs + 2 x temporaries x parts) / bandwidth: each byte of the
                  state is read and written once, each byte of the temporaries, too, in each part of
                  an accumulated batch
  communication = the sum over the collectives of the bytes that a device sends / the speed of the
  way they take

On a way inside a machine, and anywhere in a slice of TPUs, that is the chip's link. GPUs are taken
to stand eight to a machine, each with a 400 Gbit/s adapter: a ring that leaves the machine has the
adapters of all its members there, and at most the link.
"""

import collections
import dataclasses
import math

from vqd_jax.runtime.hardware import Chip
from vqd_jax.train.cost.compiled import Collective

MACHINE, ADAPTER = 8, 50e9  # GPUs in one machine; bytes/s of a GPU's network adapter, one direction


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Of one device, by the compiler: what goes into a step, what comes out, how much of that is in
    place, what is needed between.
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
    """Seconds of a step on a chip, and whether its memory is enough."""

    chip: Chip
    compute: float
    memory: float
    communication: float
    fits: bool

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.communication


def forecast(
    chip: Chip, size: Bytes, products: int, collectives: list[Collective], parts: int = 1
) -> Forecast:
    """`products`: FLOP of a device in a step. `parts`: of the batch, one after the other."""
    traffic = size.arguments + size.outputs + 2 * size.temporaries * parts
    return Forecast(
        chip,
        products / chip.peak,
        traffic / chip.bandwidth,
        math.fsum(c.moved / speed(chip, c) for c in collectives),
        size.peak <= chip.memory,
    )


def speed(chip: Chip, collective: Collective) -> float:
    """Bytes/s at which a device sends to the others of its group."""
    if chip.name.startswith("TPU"):
        return chip.link
    together = min(
        min(collections.Counter(device // MACHINE for device in group).values())
        for group in collective.groups
    )
    return (
        chip.link if together == len(collective.groups[0]) else min(chip.link, ADAPTER * together)
    )
