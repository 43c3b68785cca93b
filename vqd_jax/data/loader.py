"""Batches as a pure function of (seed, step), so a resumed or re-sharded run sees the same data.

A position counts examples since the start of training; its item comes from the epoch's permutation
and its randomness from (seed, position). Grain composes the pipeline and prefetches. The
permutation is our own, because Grain's index cipher walks a 16-bit domain and takes milliseconds an
example on small sets.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vqd_jax.core.cores import cores
from vqd_jax.core.errors import UserError
from vqd_jax.data.source import Items

if TYPE_CHECKING:
    import grain

Example = dict[str, Any]  # of arrays or NumPy scalars, the same shapes for every item
Batch = dict[str, np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")
Load = Callable[[Any, np.random.Generator], Example]

MOST_THREADS = 16  # by default: each holds a batch
AHEAD = 2  # finished batches that wait, beside those that are being loaded


class _Positions:
    """Maps a local row to its global position: process p of n has the rows [p b/n, (p+1) b/n) of
    every global batch of b.
    """

    def __init__(self, batch_size: int, start: int, process_index: int, process_count: int):
        self.rows = batch_size // process_count
        self.batch_size, self.offset = batch_size, start + process_index * self.rows

    def __len__(self) -> int:
        # half, as Grain adds to it
        return sys.maxsize // 2 // self.batch_size * self.rows

    def __getitem__(self, row: int) -> int:
        step, j = divmod(int(row), self.rows)
        return step * self.batch_size + self.offset + j


class Loader:
    """Endless batches: `loader[step]`, or `loader.iterate(start)` to load ahead in the background.

    Args:
      items: the items to load.
      batch_size: the global batch size; a process gets batch_size / process_count rows.
      start: the position of the first example of batch 0.
      load: `(item, rng) -> {name: array}`, called from several threads; rng depends on (seed,
        position) only.
      shuffle: whether each epoch has a new permutation; otherwise `items` repeat in order.
      order: position → index of the item, in place of permutations of all items.
      threads: the number of batches that `iterate` loads at the same time; 0 is one for each core,
        at most MOST_THREADS.
      workers: the number of processes among which these threads are divided; 0 keeps them all in
        this one. The batches are the same.
    """

    def __init__(
        self,
        items: Items,
        *,
        batch_size: int,
        start: int = 0,
        seed: int,
        load: Load,
        shuffle: bool = True,
        order: Callable[[int], int] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 0,
        workers: int = 0,
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
        self._start, self._load, self._order = start, load, order
        if min(threads, workers) < 0:
            raise UserError(
                f"data.threads and data.workers must not be negative, got {threads} and {workers}"
            )
        self._threads, self._workers = threads or min(cores(), MOST_THREADS), workers
        self._positions = _Positions(batch_size, start, process_index, process_count)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self._batches[step]

    def global_batch(self, step: int) -> Batch:
        """All rows of a global batch, including those of other processes."""
        rows = [self.example(position) for position in self.positions(step)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def iterate(self, start: int = 0) -> "Batches":
        """The batches start, start + 1, …; `close()`, or the end of a `with`, stops the threads."""
        import grain

        each = max(self._threads // max(self._workers, 1), 1)
        read = grain.ReadOptions(num_threads=each, prefetch_buffer_size=each + AHEAD)
        batches = self._batches[start:].to_iter_dataset(read)
        if self._workers:
            options = grain.MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(options, worker_init_fn=_follow_parent)
        return Batches(iter(batches))

    @functools.cached_property
    def _batches(self) -> Any:
        """A `grain.MapDataset`, of a library that is slow to import."""
        import grain

        rows = self._positions.rows
        return grain.MapDataset.source(self._positions).map(self.example).batch(rows)

    def positions(self, step: int) -> range:
        """The positions of the examples of a global batch."""
        first = self._start + step * self.batch_size
        return range(first, first + self.batch_size)

    def index(self, position: int) -> int:
        """The index of the item at a global position."""
        if self._order:
            return self._order(position)
        epoch, i = divmod(position, len(self.items))
        return int(permutation((self.seed, 0, epoch), len(self.items))[i]) if self.shuffle else i

    def example(self, position: int) -> Example:
        """The loaded example at a global position."""
        return self._load(
            self.items[self.index(position)], np.random.default_rng((self.seed, 1, position))
        )


@functools.lru_cache(maxsize=16)
def permutation(seed: tuple[int, ...], count: int) -> np.ndarray:
    """The permutation of `count` items that belongs to a seed."""
    return np.random.default_rng(seed).permutation(count)


def _follow_parent(worker: int, workers: int) -> None:
    """Leaves Ctrl-C, which the terminal sends to every process, to the one that trains, and ends
    this one with it, even if that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    if parent := multiprocessing.parent_process():
        threading.Thread(target=end, daemon=True, name="parent").start()


class Batches:
    """An iterator over batches that owns loading threads."""

    def __init__(self, source: "grain.DatasetIterator"):
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
    one = lambda i: load(items[i], np.random.default_rng((0, 1, i)))
    loaded = prefetch(one, range(len(items)))
    while rows := [row for _, row in itertools.islice(loaded, batch_size)]:
        valid = len(rows)
        rows += rows[-1:] * (batch_size - valid)
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}, valid


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yields `(item, function(item))` in order; threads, one for each core, compute a few ahead."""
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 4 * cores():
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()
