"""Readers of pickled weights that execute nothing: a fixed list of globals is accepted, and torch is not needed.

`read_numpy_pickle` reads trees of numpy arrays; `read_torch` reads both formats of `torch.save` (the legacy stream and
the zip file). Of the zip file nothing stays in memory: its arrays are views of the mapped file.
"""

import collections
import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy._core import multiarray

from vqd_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}
_PLACEHOLDERS = ("pytorch_lightning.", "omegaconf.", "argparse.")  # in published checkpoints, beside the weights


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _Placeholder:
    """Stands for an object that is not wanted: takes any state and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


class _Module:
    """A module of a TorchScript archive: its parameters, buffers and children by name."""

    def __setstate__(self, state):
        self.state = state


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        whole = storages[self.storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((0, self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= whole.size):
            raise pickle.UnpicklingError("a tensor outside its storage")
        strides = tuple(s * whole.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(whole[self.offset:], self.shape, strides, writeable=False)


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *_) -> _Tensor:
    return tensor


def _from_buffer(buffer, dtype, shape, order, *_) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


_NUMPY = {
    ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", name): getattr(multiarray, name)
       for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
_TORCH = _NUMPY | {
    ("collections", "OrderedDict"): collections.OrderedDict, ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, known: dict[tuple[str, str], Any], placeholders: tuple[str, ...] = ()):
        super().__init__(file)
        self.known, self.placeholders, self.storages = known, placeholders, {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        if self.known is _TORCH and module.startswith("__torch__."):
            return _Module
        if f"{module}.{name}".startswith(self.placeholders):
            return _Placeholder
        raise pickle.UnpicklingError(f"the global {module}.{name}")

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"a {kind!r} entry that is not a plain storage")
        return self.storages.setdefault(key, _Storage(key, dtype, size))


def read_numpy_pickle(path: str | Path) -> Any:
    """The tree of numpy arrays pickled in `path`; UserError if the file is damaged or holds anything else."""
    def read(file):
        return _resolve(_Unpickler(file, _NUMPY).load(), {})
    return _reading(path, "a pickle of numpy arrays", read)


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote to `path`, tensors as read-only numpy arrays; UserError if it is damaged or holds code.

    Objects of the trainer that some published checkpoints carry come back as empty placeholders, modules of a TorchScript
    archive, as OpenAI publishes CLIP, as dictionaries.
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
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not {kind} (found {error})") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} is not {kind}, or it is damaged ({type(error).__name__})") from error


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickled, = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian numbers")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)), _TORCH, _PLACEHOLDERS)
        tree = unpickler.load()
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        storages = {key: np.frombuffer(_member(archive, file, mapped, f"{root}data/{key}"), s.dtype, s.size)
                    for key, s in unpickler.storages.items()}
    return _resolve(tree, storages)


def _member(archive: zipfile.ZipFile, file: io.BufferedIOBase, mapped: memoryview, name: str) -> memoryview | bytes:
    """The content of a file in the archive, in place unless it is compressed, after its checksum has been compared."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
    with archive.open(info) as stream:
        while stream.read(2**20):
            pass
    file.seek(info.header_offset + 26)
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))  # behind the name and the extra field
    return mapped[begin:begin + info.file_size]


def _read_legacy(file: io.BufferedIOBase) -> Any:
    file.seek(0)
    magic, _, system = (_Unpickler(file, {}).load() for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no torch header")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("big-endian numbers")
    unpickler = _Unpickler(file, _TORCH, _PLACEHOLDERS)
    tree = unpickler.load()
    storages = {}
    for key in _Unpickler(file, {}).load():
        declared = unpickler.storages[key]
        size, = struct.unpack("<q", file.read(8))
        data = file.read(size * declared.dtype.itemsize) if size == declared.size else b""
        storages[key] = np.frombuffer(data, declared.dtype, declared.size)
    return _resolve(tree, storages)


def _resolve(tree: Any, storages: dict[str, np.ndarray]) -> Any:
    if isinstance(tree, _Tensor):
        return tree.array(storages)
    if isinstance(tree, _Module):
        return _resolve(vars(tree).get("state", {}), storages)
    if isinstance(tree, dict):
        return {key: _resolve(value, storages) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_resolve(value, storages) for value in tree)
    if isinstance(tree, np.ndarray) and tree.dtype.hasobject:
        raise pickle.UnpicklingError("an array of objects")
    return tree
