"""Reads pickled weights without torch and without running code: only a fixed list of globals is
accepted.

`read_numpy_pickle` reads trees of numpy arrays; `read_torch` reads both formats of `torch.save`
(the legacy stream and the zip file). Arrays of a zip file are views of the memory-mapped file.
"""

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.file_kinds import kind_of_file
from vqd_jax.core.safe_pickle import Unpickler, atom, unknown_global
from vqd_jax.core.text_files import shown
from vqd_jax.models.weights.torch_stubs import (
    NUMPY,
    PLACEHOLDERS,
    TORCH,
    Array,
    Dtype,
    Module,
    Ordered,
    Placeholder,
    Storage,
    Tensor,
    TorchDtype,
    Unread,
    torch_dtype,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ARRAYS = 2**16  # limit on the tensors in a file
LONGEST = 1000  # limit on the characters of a tensor's name
# Limits on a tree with all its repetitions: entries, characters of all names, levels
_ENTRIES = 2**22
_CHARACTERS = 2**24
_LEVELS = 100
_BRANCH = 16  # entries that a list or dictionary counts for by itself
_ATOMS = (str, bytes, int, float, bool, type(None))
_PICKLE = 2**26  # limit on the bytes of a zip file's pickle, which holds no numbers
# Limit on what is in a file, relative to its size: weights hardly compress and are seldom shared
_DENSEST = 16
_SLACK = 2**16


class UnreadDtype(Exception):
    """A tensor's name and its type, which is not read."""


class _Unpickler(Unpickler):
    stateful = (Module, Ordered, Dtype, Array)
    ignored = (Placeholder,)

    def __init__(
        self,
        file: io.BufferedIOBase,
        known: dict[tuple[str, str], Any],
        placeholders: tuple[str, ...] = (),
    ):
        super().__init__(file)
        self.known, self.storages = known, {}
        self.placeholders, self.inside = placeholders, tuple(f"{name}." for name in placeholders)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        if self.known is TORCH and module.startswith("__torch__."):
            return Module
        if module in self.placeholders or module.startswith(self.inside):
            return Placeholder
        if self.known is TORCH and (dtype := torch_dtype(module, name)):
            return dtype
        raise unknown_global(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *view = pid
        if type(kind) is not str or kind != "storage" or any(v is not None for v in view):
            raise pickle.UnpicklingError("an entry that is not a plain storage")
        if not isinstance(dtype, np.dtype | TorchDtype) or type(key) is not str:
            raise pickle.UnpicklingError("a storage of no type or name")
        if type(size) is not int or not 0 <= size < 2**48:
            raise pickle.UnpicklingError(f"a storage of {shown(size)} numbers")
        return self.storages.setdefault(key, Storage(key, dtype, size))


def read_numpy_pickle(path: str | Path) -> Any:
    """The tree of numpy arrays in a pickle; UserError if it is damaged or holds anything else."""

    def read(file):
        return _Arrays({}, _size(file)).resolve(_Unpickler(file, NUMPY).load())

    return _reading(path, "a pickle of numpy arrays", read)


def read_torch(path: str | Path) -> Any:
    """The tree in a file of `torch.save`, with read-only numpy arrays; UserError if it is damaged
    or holds code.

    Objects of a trainer, which some published checkpoints include, become empty placeholders;
    modules of a TorchScript archive, the format of OpenAI's CLIP, become dictionaries.
    """

    def read(file):
        return _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)

    return _reading(path, "a torch checkpoint of tensors", read)


def _reading(path: str | Path, kind: str, read: Callable[[io.BufferedIOBase], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            return read(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnreadDtype as error:
        raise UserError(not_read(path, *error.args)) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(_why(path, kind, error)) from error


def not_read(path: str | Path, name: str, dtype: str) -> str:
    """The sentence about a tensor whose type of numbers is not read."""
    return (
        f"{path}: the tensor {shown(name)} is of the type {dtype}, which is not read: give weights "
        "in float32, float16 or bfloat16"
    )


def _why(path: str | Path, kind: str, error: Exception) -> str:
    found = kind_of_file(path)
    if found and found != "a ZIP archive":  # which torch checkpoints are
        return f"{path} is {found}, and not {kind}"
    if isinstance(error, pickle.UnpicklingError):
        return f"{path} is not {kind} ({' '.join(str(error).split())})"
    return f"{path} is not {kind}, or it is damaged ({type(error).__name__})"


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        if sum(info.file_size for info in archive.infolist()) > _DENSEST * _size(file) + _SLACK:
            raise pickle.UnpicklingError("parts much larger than the file")
        (pickled,) = (
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        )
        if archive.getinfo(pickled).file_size > _PICKLE:
            raise pickle.UnpicklingError(f"a list of tensors of more than {_PICKLE:,} bytes")
        root = pickled.removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and _content(archive, f"{root}byteorder") != b"little"
        ):
            raise pickle.UnpicklingError("big-endian numbers")
        unpickler = _Unpickler(io.BytesIO(_content(archive, pickled)), TORCH, PLACEHOLDERS)
        tree = unpickler.load()
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        storages = {
            key: np.frombuffer(_member(archive, file, mapped, f"{root}data/{key}"), s.dtype, s.size)
            for key, s in unpickler.storages.items()
            if isinstance(s.dtype, np.dtype)
        }
    return _Arrays(storages, _size(file)).resolve(tree)


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in the archive, which unpacks to no more than it claims."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise pickle.UnpicklingError("a kind of compression that torch does not use")
    with archive.open(info) as stream:
        content = stream.read(info.file_size)
        stream.read(1)  # checks the checksum
    return content


def _member(
    archive: zipfile.ZipFile, file: io.BufferedIOBase, mapped: memoryview, name: str
) -> memoryview | bytes:
    """The content of a file in the archive, a view unless it is compressed; checks its checksum."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return _content(archive, name)
    with archive.open(info) as stream:
        while stream.read(2**20):
            pass
    file.seek(info.header_offset + 26)
    # The content follows the name and the extra field.
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return mapped[begin : begin + info.file_size]


def _read_legacy(file: io.BufferedIOBase) -> Any:
    file.seek(0)
    magic, _, system = (_Unpickler(file, {}).load() for _ in range(3))
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no torch header")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("big-endian numbers")
    unpickler = _Unpickler(file, TORCH, PLACEHOLDERS)
    tree = unpickler.load()
    if any(isinstance(storage.dtype, TorchDtype) for storage in unpickler.storages.values()):
        _Arrays(None, 0).resolve(tree)  # raises the error about the first
    storages = {}
    for key in _Unpickler(file, {}).load():
        declared = unpickler.storages[atom(key)]
        (size,) = struct.unpack("<q", file.read(8))
        data = (
            file.read(min(size * declared.dtype.itemsize, _size(file)))
            if size == declared.size
            else b""
        )
        storages[key] = np.frombuffer(data, declared.dtype, declared.size)
    return _Arrays(storages, _size(file)).resolve(tree)


def _size(file: io.BufferedIOBase) -> int:
    return os.fstat(file.fileno()).st_size


class _Arrays:
    """Makes arrays of the tensors in a tree, and copies of its shared parts, within limits. Without
    storages, tensors become None.
    """

    def __init__(self, storages: dict[str, np.ndarray] | None, size: int):
        self.storages, self.bytes = storages, _DENSEST * size + _SLACK
        self.entries, self.arrays, self.characters = _ENTRIES, ARRAYS, _CHARACTERS

    def resolve(self, tree: Any, name: str = "", level: int = 0) -> Any:
        if type(tree) in _ATOMS:
            return tree
        if isinstance(tree, Unread):
            raise UnreadDtype(name, tree.dtype)
        if isinstance(tree, Tensor):
            return None if self.storages is None else self._array(name, tree.array(self.storages))
        if isinstance(tree, Array):
            return self._array(name, tree.values)
        if isinstance(tree, Module):
            tree = vars(tree).get("state", {})
        if not isinstance(tree, dict | list | tuple):
            return tree
        self.entries -= _BRANCH + len(tree)
        if self.entries < 0 or level > _LEVELS:
            raise pickle.UnpicklingError(f"more than {_ENTRIES:,} entries or {_LEVELS} levels")
        if isinstance(tree, list | tuple):
            return type(tree)([self.resolve(value, name, level + 1) for value in tree])
        return {
            key: self.resolve(value, self._name(name, key), level + 1)
            for key, value in tree.items()
        }

    def _name(self, prefix: str, key: Any) -> str:
        name = f"{prefix}.{key}" if prefix else str(key)
        self.characters -= len(name)
        if self.characters < 0:
            raise pickle.UnpicklingError(f"names of more than {_CHARACTERS:,} characters")
        return name

    def _array(self, name: str, array: np.ndarray) -> np.ndarray:
        self.arrays -= 1
        self.bytes -= array.nbytes
        if self.arrays < 0 or len(name) > LONGEST:
            raise pickle.UnpicklingError(
                f"more than {ARRAYS:,} tensors, or a name of more than {LONGEST} characters"
            )
        if self.bytes < 0:
            raise pickle.UnpicklingError("tensors much larger than the file")
        return array
