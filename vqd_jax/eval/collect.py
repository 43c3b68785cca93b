"""Collects features of many images in one pass, batch by batch: mean and covariance of all images,
feature vectors of all or some.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import prefetch
from vqd_jax.data.source import Items
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Moments
from vqd_jax.runtime.progress import bar

BATCH_SIZE = 64  # images
MOMENTS_BATCH = 1024  # features whose moments are computed at once

# images of one size, or of several
Batch = UInt8[np.ndarray, "b H W 3"] | list[UInt8[np.ndarray, "_ _ 3"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSpec:
    """What to collect from one network: the features of `keep` evenly spaced images (0: of all),
    and with `moments` mean and covariance of all.
    """

    extract: Extractor
    keep: int = 0
    moments: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """Features of one network.

    Attributes:
      count: images, each counted as often as its weight says.
      indices: of the images whose features are kept.
      features: of those images, float32.
      moments: of all images, weighted; None if not requested.
      digests: hashes of the pixels of the images whose features are kept.
    """

    count: int
    indices: Sequence[int]
    features: Float[np.ndarray, "n d"]
    moments: Moments | None
    digests: Sequence[bytes] = ()


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` indices below `total`, evenly spaced; all of them for a count of 0."""
    return np.linspace(0, total - 1, min(count or total, total)).astype(int).tolist()


def batches(images: Items, size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Batches of images in order, read ahead by threads. Arrays have the size of the first image,
    so that one program is compiled.
    """
    waiting: list[np.ndarray] = []
    shape: tuple[int, ...] = ()
    for _, image in prefetch(images.__getitem__, range(len(images))):
        shape = shape or image.shape
        waiting.append(image)
        if len(waiting) == size:
            yield _stacked(waiting, shape)
            waiting = []
    if waiting:
        yield _stacked(waiting, shape)


def _stacked(images: list[np.ndarray], shape: tuple[int, ...]) -> Batch:
    """One array if all images have the shape."""
    return np.stack(images) if {image.shape for image in images} == {shape} else images


def collect(
    parts: Iterable[Batch],
    total: int,
    networks: Mapping[str, FeatureSpec],
    *,
    description: str,
    weights: Sequence[int] | None = None,
) -> dict[str, Collected]:
    """The features of `total` images in `parts` by network; image i counts weights[i] times in the
    moments, or once.
    """
    weights = np.ones(total, int) if weights is None else np.asarray(weights)
    if len(weights) != total or weights.min(initial=1) < 1:
        raise UserError(
            f"each of {total} images must have a weight of at least 1, got {len(weights)} weights "
            f"from {weights.min(initial=1)}"
        )
    collectors = {name: _Collector(spec, weights) for name, spec in networks.items()}
    done = 0
    with bar(total, description=description, unit="image") as progress:
        for images in parts:
            for collector in collectors.values():
                collector.add(done, images)
            done += len(images)
            progress.update(len(images))
    return {name: collector.result() for name, collector in collectors.items()}


class _Collector:
    """Accumulates the features of one network."""

    def __init__(self, spec: FeatureSpec, weights: Int[np.ndarray, " n"]):
        self.spec, self.weights = spec, weights
        self.indices = np.array(evenly_spaced(len(weights), spec.keep), int)
        self.features: list[np.ndarray] = []
        self.digests: list[bytes] = []
        self.pending: list[np.ndarray] = []  # features that are not yet in the moments
        self.moments: Moments | None = None

    def add(self, first: int, images: Batch) -> None:
        """Adds the images from index `first` on."""
        features = self.spec.extract(images)
        low, high = np.searchsorted(self.indices, (first, first + len(images)))
        kept = self.indices[low:high] - first
        self.features.append(features[kept])
        self.digests += [hashlib.sha256(images[i].tobytes()).digest() for i in kept]
        if self.spec.moments:
            weights = self.weights[first : first + len(images)]
            self.pending.append(np.repeat(features, weights, axis=0))
            if sum(map(len, self.pending)) >= MOMENTS_BATCH:
                self._update_moments()

    def _update_moments(self) -> None:
        new = Moments.of(np.concatenate(self.pending))
        self.moments = new if self.moments is None else self.moments + new
        self.pending = []

    def result(self) -> Collected:
        if self.pending:
            self._update_moments()
        return Collected(
            count=int(self.weights.sum()),
            indices=self.indices.tolist(),
            features=np.concatenate(self.features),
            moments=self.moments,
            digests=self.digests,
        )
