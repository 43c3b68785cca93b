"""Batches as a pure function of (seed, step), so a resumed or re-sharded run sees the same data.

A position counts examples since the start of training; its item comes from the epoch's permutation
and its randomness from (seed, position). Grain composes the pipeline and prefetches. The
permutation is our own, because Grain's index cipher walks a 16-bit domain and takes milliseconds an
example on small sets.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data.source import Items

Example = dict[str, Any]  # of arrays or NumPy scalars, the same shapes for every item
Batch = dict[str, np.ndarray]
Load = Callable[[Any, np.random.Generator], Example]


class _Positions:
    """Maps a local row to its global position: process p of n has the rows [p b/n, (p+1) b/n) of
    every global batch of b.
    """

    def __init__(self, batch_size: int, process_index: int, process_count: int):
        self.rows = batch_size // process_count
        self.batch_size, self.offset = batch_size, process_index * self.rows

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size * self.rows

    def __getitem__(self, row: int) -> int:
        step, j = divmod(int(row), self.rows)
        return step * self.batch_size + self.offset + j


class Loader:
    """Endless batches: `loader[step]`, or `loader.iterate(start)` to load ahead in the background.

    Args:
      items: the items to load.
      batch_size: the global batch size; a process gets batch_size / process_count rows.
      load: `(item, rng) -> {name: array}`, called from several threads; rng depends on (seed,
        position) only.
      shuffle: whether each epoch has a new permutation; otherwise `items` repeat in order.
      order: position → index of the item, in place of permutations of all items.
      prefetch: the number of batches that `iterate` loads ahead.
      threads: the number of loading threads.
    """

    def __init__(
        self,
        items: Items,
        *,
        batch_size: int,
        seed: int,
        load: Load,
        shuffle: bool = True,
        order: Callable[[int], int] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 4,
        threads: int = 2,
    ):
        if len(items) == 0:
            raise UserError(
                "the data set has no examples for training: its filters in the config leave none"
            )
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch_size {batch_size} must be a positive multiple of the {process_count} "
                "processes"
            )
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index {process_index} must lie in [0, {process_count})")
        if seed < 0:
            raise UserError(f"the data seed must not be negative, got {seed}")
        self.items, self.batch_size, self.seed, self.shuffle = items, batch_size, seed, shuffle
        self._load, self._order = load, order
        self._read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._permutation = functools.lru_cache(maxsize=4)(self._draw_permutation)
        positions = _Positions(batch_size, process_index, process_count)
        self._batches = grain.MapDataset.source(positions).map(self.example).batch(positions.rows)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self._batches[step]

    def global_batch(self, step: int) -> Batch:
        """All rows of a global batch, including those of other processes."""
        rows = [self.example(step * self.batch_size + row) for row in range(self.batch_size)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def iterate(self, start: int = 0) -> "Batches":
        """The batches start, start + 1, …; `close()`, or the end of a `with`, stops the threads."""
        return Batches(iter(self._batches[start:].to_iter_dataset(self._read)))

    def index(self, position: int) -> int:
        """The index of the item at a global position."""
        if self._order:
            return self._order(position)
        epoch, i = divmod(position, len(self.items))
        return int(self._permutation(epoch)[i]) if self.shuffle else i

    def example(self, position: int) -> Example:
        """The loaded example at a global position."""
        return self._load(
            self.items[self.index(position)], np.random.default_rng((self.seed, 1, position))
        )

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.items))


class Batches:
    """An iterator over batches that owns loading threads."""

    def __init__(self, source: grain.DatasetIterator):
        self._source: grain.DatasetIterator | None = source

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._source is None:
            raise StopIteration
        return next(self._source)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sequential(items: Items, batch_size: int, load: Load) -> Iterator[tuple[Batch, int]]:
    """Yields every item once, in order, as (batch, valid). The last batch is padded by repeating
    its last row; only the first `valid` rows count.

    The generator given to `load` depends on the index of the item only.
    """
    for start in range(0, len(items), batch_size):
        stop = min(start + batch_size, len(items))
        rows = [load(items[i], np.random.default_rng((0, 1, i))) for i in range(start, stop)]
        rows += rows[-1:] * (batch_size - len(rows))
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}, stop - start
