"""Pickles as plain data: no object is looked up and nothing runs, and no memory is taken for
lengths that a damaged file only claims.
"""

import io
import pickle
import struct
from typing import Any


class Unpickler(pickle._Unpickler):
    """The one of the standard library that is written in Python, whose steps can be refused and
    whose table of objects is sparse.

    Numbers, strings, lists, tuples, sets and dictionaries load; a class that knows more globals
    overrides `find_class`, and `stateful` with those of its classes that take a state.
    """

    stateful: tuple[type, ...] = ()

    def __init__(self, file: io.BufferedIOBase, **options: Any):
        super().__init__(_Bounded(file), **options)

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the global {module}.{name}")

    def _state(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], self.stateful):
            raise pickle.UnpicklingError(f"a state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def _bytes(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: _state, pickle.BYTEARRAY8[0]: _bytes}


class _Bounded:
    """A file that is never asked for more than it has: the space for it would be taken first."""

    def __init__(self, file: io.BufferedIOBase):
        here = file.tell()
        self.file, self.end = file, file.seek(0, io.SEEK_END)
        file.seek(here)
        self.readline = file.readline

    def read(self, length: int) -> bytes:
        return self.file.read(
            length if length <= 4096 else min(length, self.end - self.file.tell())
        )
