"""A progress bar with rate, loss and remaining time: tqdm on standard error. Without a terminal it
is a line every ten seconds, which keeps the logs of batch jobs readable.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

SECONDS_PER_LINE = 10.0

Item = TypeVar("Item")


class Bar(contextlib.AbstractContextManager):
    """A bar that counts up to `total`. Close it, or use `with`."""

    def __init__(
        self, total: int, initial: int, description: str, unit: str, stream: io.TextIOBase | TextIO
    ):
        if stream.isatty():
            style = {"file": stream, "dynamic_ncols": True}
        else:
            style = {
                "file": _Lines(stream),
                "mininterval": SECONDS_PER_LINE,
                "maxinterval": SECONDS_PER_LINE,
                "bar_format": "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, "
                "{rate_fmt}{postfix}]",
            }
        self._tqdm = tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            miniters=1,
            smoothing=0.1,
            **style,
        )

    def update(self, n: int = 1, **values: Any) -> None:
        """Advances by `n`. Numbers such as loss=… are shown after the rate until the next ones."""
        if values:
            self._tqdm.set_postfix(
                {key: f"{float(value):.4g}" for key, value in values.items()}, refresh=False
            )
        self._tqdm.update(n)

    def close(self) -> None:
        self._tqdm.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


def bar(total: int, initial: int = 0, description: str = "", unit: str = "step") -> Bar:
    """A bar on standard error. `initial` is the start of a resumed run; it does not count in the
    rate.
    """
    return Bar(total, initial, description, unit, sys.stderr)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yields the items, with a bar that counts them."""
    with bar(total, description=description, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


class _Lines:
    """A stream that writes each refresh of tqdm as a line."""

    def __init__(self, stream: io.TextIOBase | TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
