"""Reads pickled weights without torch and without running code: only a fixed list of globals is
accepted.

`read_numpy_pickle` reads trees of numpy arrays; `read_torch` reads both formats of `torch.save`
(the legacy stream and the zip file). Arrays of a zip file are views of the memory-mapped file.
"""

import io
import itertools
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.file_kinds import kind_of_file
from vqd_jax.core.safe_pickle import Unpickler
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
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ENTRIES = 2**22  # limit on the entries of lists and dictionaries, repetitions included
_DENSEST = 16  # limit on a compressed file's content, relative to its size; weights hardly compress


class _Unpickler(Unpickler):
    stateful = (Placeholder, Module, Ordered, Dtype, Array)

    def __init__(
        self,
        file: io.BufferedIOBase,
        known: dict[tuple[str, str], Any],
        placeholders: tuple[str, ...] = (),
    ):
        super().__init__(file)
        self.known, self.placeholders, self.storages = known, placeholders, {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        if self.known is TORCH and module.startswith("__torch__."):
            return Module
        if f"{module}.{name}".startswith(self.placeholders):
            return Placeholder
        raise pickle.UnpicklingError(f"the global {module}.{name}")

    def persistent_load(self, pid: tuple) -> Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"a {kind!r} entry that is not a plain storage")
        return self.storages.setdefault(key, Storage(key, dtype, size))


def read_numpy_pickle(path: str | Path) -> Any:
    """The tree of numpy arrays in a pickle; UserError if it is damaged or holds anything else."""

    def read(file):
        return _resolve(_Unpickler(file, NUMPY).load(), {})

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
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(_why(path, kind, error)) from error


def _why(path: str | Path, kind: str, error: Exception) -> str:
    found = kind_of_file(path)
    if found and found != "a ZIP archive":  # which torch checkpoints are
        return f"{path} is {found}, and not {kind}"
    if isinstance(error, pickle.UnpicklingError):
        return f"{path} is not {kind} ({' '.join(str(error).split())})"
    return f"{path} is not {kind}, or it is damaged ({type(error).__name__})"


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        if sum(info.file_size for info in archive.infolist()) > _DENSEST * _size(file) + 2**16:
            raise pickle.UnpicklingError("parts much larger than the file")
        (pickled,) = (
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        )
        root = pickled.removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise pickle.UnpicklingError("big-endian numbers")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)), TORCH, PLACEHOLDERS)
        tree = unpickler.load()
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        storages = {
            key: np.frombuffer(_member(archive, file, mapped, f"{root}data/{key}"), s.dtype, s.size)
            for key, s in unpickler.storages.items()
        }
    return _resolve(tree, storages)


def _member(
    archive: zipfile.ZipFile, file: io.BufferedIOBase, mapped: memoryview, name: str
) -> memoryview | bytes:
    """The content of a file in the archive, a view unless it is compressed; checks its checksum."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
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
    if magic != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no torch header")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("big-endian numbers")
    unpickler = _Unpickler(file, TORCH, PLACEHOLDERS)
    tree = unpickler.load()
    storages = {}
    for key in _Unpickler(file, {}).load():
        declared = unpickler.storages[key]
        (size,) = struct.unpack("<q", file.read(8))
        data = (
            file.read(min(size * declared.dtype.itemsize, _size(file)))
            if size == declared.size
            else b""
        )
        storages[key] = np.frombuffer(data, declared.dtype, declared.size)
    return _resolve(tree, storages)


def _size(file: io.BufferedIOBase) -> int:
    return os.fstat(file.fileno()).st_size


def _resolve(
    tree: Any, storages: dict[str, np.ndarray], counter: Iterator[int] | None = None
) -> Any:
    counter = counter or itertools.count()
    if next(counter) > _ENTRIES:
        raise pickle.UnpicklingError(f"more than {_ENTRIES:,} entries")
    if isinstance(tree, Tensor):
        return tree.array(storages)
    if isinstance(tree, Array):
        return tree.values
    if isinstance(tree, Module):
        return _resolve(vars(tree).get("state", {}), storages, counter)
    if isinstance(tree, dict):
        return {key: _resolve(value, storages, counter) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([_resolve(value, storages, counter) for value in tree])
    return tree
