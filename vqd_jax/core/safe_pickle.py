"""Pickles as plain data: loading looks up no object, runs nothing, and takes time and memory in
proportion to the file.

A few hundred bytes can describe tuples in tuples that are shared 2^100 times, and a megabyte can
copy a text 100,000 times. So nothing from the file is hashed but numbers and texts, nothing is
compared or shown, and operations and bytes made are counted.
"""

import functools
import io
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any

from vqd_jax.core.errors import printable

OPERATIONS = 2**21  # in a pickle: a second or two, and 50,000 tensors
MADE = 2**27  # bytes made beside four times the length of the file
ARGUMENTS = 32  # of a call
OBJECT, ENTRY = 256, 64  # bytes that an object of a class, and an entry of a collection, may take


class Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, which can refuse single operations, and whose
    table of objects is sparse.

    Loads numbers, strings, lists, tuples, sets and dictionaries. A subclass that knows more globals
    overrides `find_class`, `stateful` with those of its classes that accept a state, and `ignored`
    with those whose states and entries are dropped.
    """

    stateful: tuple[type, ...] = ()
    ignored: tuple[type, ...] = ()

    def __init__(self, file: io.BufferedIOBase, **options: Any):
        bounded = _Bounded(file)
        super().__init__(bounded, **options)
        self.operations, self.left = 0, MADE + 4 * (bounded.end - file.tell())

    def find_class(self, module: str, name: str) -> Any:
        raise unknown_global(module, name)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("an extension of the pickle format")

    def _make(self, size: int) -> None:
        """Counts bytes that are made, or referred to once more."""
        self.left -= size
        if self.left < 0:
            raise pickle.UnpicklingError("objects much larger than the file")

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple or len(arguments) > ARGUMENTS:
            raise pickle.UnpicklingError(f"a call without a tuple of at most {ARGUMENTS} arguments")
        self._make(sum(ENTRY * len(x) for x in arguments if isinstance(x, list | tuple | dict)))
        made = function(*arguments)
        self._make(OBJECT + sys.getsizeof(made))
        return made

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, type):
            raise pickle.UnpicklingError(f"an object of a {type(cls).__name__}")
        self.append(self._call(functools.partial(cls.__new__, cls), arguments))

    def _refuse(self, *_: Any) -> None:
        raise pickle.UnpicklingError("an operation that plain data do not need")

    _instantiate = _refuse  # of classes that Python 3 does not have

    def _state(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], self.ignored):
            return
        if not isinstance(self.stack[-1], self.stateful):
            raise pickle.UnpicklingError(f"a state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def _bytes(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._store(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._store([key, value])

    def _setitems(self) -> None:
        self._store(self.pop_mark())

    def _store(self, items: list[Any]) -> None:
        if (target := self._target(dict)) is not None:
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[self._hashable(key)] = value

    def _append(self) -> None:
        value = self.stack.pop()
        if (target := self._target(list)) is not None:
            target.append(value)

    def _appends(self) -> None:
        items = self.pop_mark()
        if (target := self._target(list)) is not None:
            target.extend(items)

    def _empty_set(self) -> None:
        self._make(OBJECT)
        self.append(set())

    def _additems(self) -> None:
        items = self.pop_mark()
        if (target := self._target(set)) is not None:
            target.update(map(self._hashable, items))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(self._hashable, items)))

    def _target(self, kind: type) -> Any:
        """The object on the stack, which must be of that kind; None if its entries are dropped."""
        top = self.stack[-1]
        if isinstance(top, self.ignored):
            return None
        if not isinstance(top, kind):
            raise pickle.UnpicklingError(f"entries of a {type(top).__name__}")
        return top

    def _hashable(self, key: Any) -> Any:
        return key if isinstance(key, self.ignored) else atom(key)


def unknown_global(module: str, name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"the global {printable(f'{module[:99]}.{name[:99]}')}")


def atom(key: Any) -> Any:
    """The key of a dictionary or member of a set, whose hash takes no time to speak of.
    UnpicklingError for others.
    """
    if isinstance(key, int) and key.bit_length() <= 64:
        return key
    if key is None or isinstance(key, str | bytes | float | type):
        return key
    raise pickle.UnpicklingError(f"a key of the type {type(key).__name__}")


def _counted(code: bytes, operation: Callable[[Any], None]) -> Callable[[Any], None]:
    """The operation with its cost: one of OPERATIONS, and the text to which it refers again."""
    refers = code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP)

    def run(self: Unpickler) -> None:
        self.operations += 1
        if self.operations > OPERATIONS:
            raise pickle.UnpicklingError(f"more than {OPERATIONS:,} operations")
        operation(self)
        if refers and isinstance(self.stack[-1], str | bytes | bytearray):
            self._make(len(self.stack[-1]))

    return run


_OURS = {
    pickle.BUILD: Unpickler._state,
    pickle.BYTEARRAY8: Unpickler._bytes,
    pickle.REDUCE: Unpickler._reduce,
    pickle.NEWOBJ: Unpickler._newobj,
    pickle.NEWOBJ_EX: Unpickler._refuse,
    pickle.NEXT_BUFFER: Unpickler._refuse,
    pickle.READONLY_BUFFER: Unpickler._refuse,
    pickle.DICT: Unpickler._dictionary,
    pickle.SETITEM: Unpickler._setitem,
    pickle.SETITEMS: Unpickler._setitems,
    pickle.APPEND: Unpickler._append,
    pickle.APPENDS: Unpickler._appends,
    pickle.EMPTY_SET: Unpickler._empty_set,
    pickle.ADDITEMS: Unpickler._additems,
    pickle.FROZENSET: Unpickler._frozenset,
}
Unpickler.dispatch = {
    code: _counted(bytes([code]), operation)
    for code, operation in (
        pickle._Unpickler.dispatch | {code[0]: operation for code, operation in _OURS.items()}
    ).items()
}


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
