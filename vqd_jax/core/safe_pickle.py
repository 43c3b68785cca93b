"""Pickles as plain data: loading looks up no object, runs nothing, and allocates no memory for
lengths that a damaged file only claims.
"""

import io
import pickle
import struct
from typing import Any


class Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, which can refuse single operations, and whose
    table of objects is sparse.

    Loads numbers, strings, lists, tuples, sets and dictionaries. A subclass that knows more globals
    overrides `find_class`, and `stateful` with those of its classes that accept a state.
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
    """A file from which at most the remaining bytes are requested, as `read` allocates first."""

    def __init__(self, file: io.BufferedIOBase):
        position = file.tell()
        self.file, self.end = file, file.seek(0, io.SEEK_END)
        file.seek(position)
        self.readline = file.readline

    def read(self, length: int) -> bytes:
        if length > 4096:
            length = min(length, self.end - self.file.tell())
        return self.file.read(length)
