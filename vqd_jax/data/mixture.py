"""The order of training examples when the parts of a data set have fixed shares of them.

Each part has its own permutations, so its records come equally often. Parts alternate evenly, so
every batch has the shares, and the record at a position needs no count of those before it.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import permutation
from vqd_jax.data.source import Record

PRECISION = 1_000_000  # shares are rounded to this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """The shares of the parts of a data set in training.

    Attributes:
      recoloured, pairs: the shares of examples with recoloured images and with two things; the rest
        are originals and mirrored ones. If both are 0, all records come equally often.
      pairs_from: the fraction of training after which there are pairs; before, the other parts
        share their place.
    """

    recoloured: float
    pairs: float
    pairs_from: float

    def __post_init__(self):
        if min(self.recoloured, self.pairs) < 0 or self.recoloured + self.pairs > 1:
            raise UserError(
                "mixture.recoloured and mixture.pairs are fractions of at most 1 together, got "
                f"{self.recoloured:g} and {self.pairs:g}"
            )
        if not 0 <= self.pairs_from <= 1:
            raise UserError(f"mixture.pairs_from must lie in [0, 1], got {self.pairs_from:g}")

    def order(self, records: Sequence[Record], *, examples: int, seed: int) -> "Order | None":
        """The order of `records` in a training of so many examples; None for a uniform one."""
        if not self.recoloured + self.pairs:
            return None
        shares = {"originals": 1 - self.recoloured - self.pairs}
        shares |= {"recoloured": self.recoloured, "pairs": self.pairs}
        parts: dict[str, list[int]] = {name: [] for name in shares}
        names = {"recoloured": "recoloured", "pair": "pairs"}
        for i, record in enumerate(records):
            parts[names.get(record.part, "originals")].append(i)
        for name, members in parts.items():
            if shares[name] and not members:
                raise UserError(
                    f"the mixture gives {name} a share of {shares[name]:g}, and the data set has "
                    f"none: switch them on (emoji.{name}), or set the share to 0"
                )
        later = tuple(shares.values())
        rest = later[0] + later[1]
        earlier = (later[0] / rest, later[1] / rest, 0.0) if rest else later
        return Order(
            tuple(parts.values()),
            phases=((0, earlier), (int(self.pairs_from * examples), later)),
            seed=seed,
        )


class Order:
    """Maps a position in training to the index of its record; a pure function of the arguments.

    Args:
      parts: the indices of the records of each part.
      phases: (first position, the share of each part from there on), ascending from 0.
      seed: of the permutations.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[int]],
        *,
        phases: Sequence[tuple[int, Sequence[float]]],
        seed: int,
    ):
        self._parts, self._seed = parts, seed
        self._phases = [(start, _conditional(shares)) for start, shares in phases]

    def __call__(self, position: int) -> int:
        before = [0] * len(self._parts)  # how many examples of each part earlier phases had
        for k, (start, shares) in enumerate(self._phases):
            end = self._phases[k + 1][0] if k + 1 < len(self._phases) else None
            if end is None or position < end:
                part, count = _place(position - start, shares)
                break
            before = [n + m for n, m in zip(before, _counts(end - start, shares))]
        members = self._parts[part]
        epoch, i = divmod(before[part] + count, len(members))
        return members[permutation((self._seed, 0, epoch, part), len(members))[i]]


def _conditional(shares: Sequence[float]) -> list[Fraction]:
    """Of what the parts before leave, the share of each part but the last."""
    exact = [Fraction(round(share * PRECISION), PRECISION) for share in shares]
    left = [sum(exact[k:], Fraction(0)) for k in range(len(exact))]
    return [share / rest if rest else Fraction(0) for share, rest in zip(exact, left)][:-1]


def _place(position: int, shares: Sequence[Fraction]) -> tuple[int, int]:
    """The part at a position, and how many examples of that part are before it."""
    for part, share in enumerate(shares):
        before, through = int(position * share), int((position + 1) * share)
        if through > before:
            return part, before
        position -= before
    return len(shares), position


def _counts(length: int, shares: Sequence[Fraction]) -> list[int]:
    """How many of the first `length` positions each part has."""
    counts = []
    for share in shares:
        counts.append(int(length * share))
        length -= counts[-1]
    return [*counts, length]
