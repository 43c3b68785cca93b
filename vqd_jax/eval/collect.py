"""What networks see in pictures, gathered in one pass, a batch of pictures at a time: mean and
covariance of all, features of some.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_files import prefetch
from vqd_jax.data.source import Items
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Moments
from vqd_jax.runtime.progress import bar

ROWS = 64  # pictures of a batch
BLOCK = 1024  # features whose moments are taken at once

Batch = UInt8[np.ndarray, "b H W 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSpec:
    """Of one network's features: those of `held` pictures, evenly spaced (0: of all), and `moments`
    if they are asked for.
    """

    extract: Extractor
    held: int = 0
    moments: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """Of `count` pictures the features of those numbered in `held`, float32, and the moments of
    all, each as often as it counts.
    """

    count: int
    held: Sequence[int]
    features: Float[np.ndarray, "n d"]
    moments: Moments | None


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spaced; all for a count of 0."""
    return np.linspace(0, total - 1, min(count or total, total)).astype(int).tolist()


def batches(pictures: Items, rows: int = ROWS) -> Iterator[Batch]:
    """The pictures in order, read ahead by threads."""
    waiting = []
    for _, image in prefetch(pictures.__getitem__, range(len(pictures))):
        waiting.append(image)
        if len(waiting) == rows:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def collect(
    parts: Iterable[Batch],
    total: int,
    networks: Mapping[Any, FeatureSpec],
    *,
    description: str,
    times: Sequence[int] | None = None,
) -> dict[Any, Collected]:
    """What is wanted of each network about the `total` pictures in `parts`; picture i counts
    times[i] times in the moments, else once.
    """
    times = np.ones(total, int) if times is None else np.asarray(times)
    if len(times) != total or times.min(initial=1) < 1:
        raise UserError(
            f"each of {total} pictures must count at least once, got {len(times)} numbers from "
            f"{times.min(initial=1)}"
        )
    collectors = {name: _Collector(wanted, times) for name, wanted in networks.items()}
    done = 0
    with bar(total, description=description, unit="picture") as progress:
        for images in parts:
            for collector in collectors.values():
                collector.see(done, images)
            done += len(images)
            progress.update(len(images))
    return {name: collector.result() for name, collector in collectors.items()}


class _Collector:
    """Of one network."""

    def __init__(self, wanted: FeatureSpec, times: np.ndarray):
        self.wanted, self.times = wanted, times
        self.held = np.array(evenly_spaced(len(times), wanted.held), int)
        self.kept: list[np.ndarray] = []
        self.block: list[np.ndarray] = []
        self.moments: Moments | None = None

    def see(self, first: int, images: Batch) -> None:
        features = self.wanted.extract(images)
        low, high = np.searchsorted(self.held, (first, first + len(images)))
        self.kept.append(features[self.held[low:high] - first])
        if self.wanted.moments:
            self.block.append(np.repeat(features, self.times[first : first + len(images)], axis=0))
            if sum(map(len, self.block)) >= BLOCK:
                self._add()

    def _add(self) -> None:
        more = Moments.of(np.concatenate(self.block))
        self.moments, self.block = more if self.moments is None else self.moments + more, []

    def result(self) -> Collected:
        if self.block:
            self._add()
        return Collected(
            count=int(self.times.sum()),
            held=self.held.tolist(),
            features=np.concatenate(self.kept),
            moments=self.moments,
        )
