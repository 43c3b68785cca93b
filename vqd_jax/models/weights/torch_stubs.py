"""Stubs for the globals of published pickles: plain data in place of the objects of numpy and
torch, and nothing that runs code.
"""

import collections
import math
import pickle
import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from vqd_jax.core.safe_pickle import atom
from vqd_jax.core.text_files import SHOWN, shown

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Packages of other objects in published checkpoints
PLACEHOLDERS = ("pytorch_lightning", "omegaconf", "argparse")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {shown(encoding)}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


class Placeholder:
    """Replaces an object that is not needed: its arguments, state and entries are dropped."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, *_):
        pass


class Module:
    """A module of a TorchScript archive: its parameters, buffers and children by name."""

    def __setstate__(self, state):
        self.state = state


class Ordered(collections.OrderedDict):
    """A state dictionary, without its versions."""

    def __init__(self, items=()):
        super().__init__((atom(key), value) for key, value in items)

    def __setstate__(self, state):
        pass


class Dtype:
    """Stub for numpy.dtype, of numbers and text only."""

    def __init__(self, code, *_):
        short = isinstance(code, str) and len(code) <= 16
        self.dtype = np.dtype(code if short else "O")
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"numbers of the type {shown(code)}")

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """Stub for numpy.ndarray, made from its bytes, so that a false shape allocates no memory."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        self.values = _from_buffer(content, dtype, shape, "F" if fortran else "C")


@dataclass(frozen=True, eq=False)
class TorchDtype:
    """Stub for one of torch's types of numbers, layouts and storages by its name."""

    name: str


@dataclass(frozen=True, eq=False)
class Unread:
    """A tensor of a type of numbers, or in a layout, that is not read."""

    dtype: str


@dataclass(frozen=True, eq=False)
class Storage:
    key: str
    dtype: np.dtype | TorchDtype
    size: int


@dataclass(frozen=True, eq=False)
class Tensor:
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        data = storages[self.storage.key]
        if math.prod(self.shape) > data.size:
            raise pickle.UnpicklingError("a tensor larger than its storage")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((0, self.offset, *self.shape, *self.strides)) < 0 or (
            0 not in self.shape and last >= data.size
        ):
            raise pickle.UnpicklingError("a tensor outside its storage")
        strides = tuple(s * data.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, strides, writeable=False
        )


def _numbers(values) -> tuple[int, ...]:
    """The sizes or strides of a tensor: few, and no longer than the largest file."""
    if not isinstance(values, tuple | list) or len(values) > 32:
        raise pickle.UnpicklingError("a shape that is none, or has more than 32 axes")
    for value in values:
        if not isinstance(value, int) or value.bit_length() > 48:
            raise pickle.UnpicklingError(f"a shape with {shown(value)}")
    return tuple(values)


def _tensor(storage, offset, shape, strides, *_) -> Tensor | Unread:
    if isinstance(storage.dtype, TorchDtype):
        return Unread(storage.dtype.name)
    (offset,) = _numbers([offset])
    return Tensor(storage, offset, _numbers(shape), _numbers(strides))


def _newer_tensor(storage, offset, shape, strides, gradient, hooks, dtype, *_) -> Unread:
    """A tensor of one of the types since torch 2.1, such as float8."""
    return Unread(dtype.name)


def _quantised(*_) -> Unread:
    return Unread("quantised")


def _sparse(*_) -> Unread:
    return Unread("sparse")


def _layout(*_) -> TorchDtype:
    return TorchDtype("layout")


def _parameter(tensor, *_) -> Tensor:
    return tensor


def _from_buffer(buffer, dtype, shape, order, *_) -> np.ndarray:
    return np.frombuffer(buffer, dtype.dtype).reshape(_numbers(shape), order=order)


def _reconstruct(*_) -> Array:
    return Array()


def _scalar(dtype, content) -> np.generic:
    return _from_buffer(content, dtype, (), "C")[()]


NUMPY = {
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
TORCH = NUMPY | {
    ("collections", "OrderedDict"): Ordered,
    ("torch", "Size"): _numbers,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _newer_tensor,
    ("torch._utils", "_rebuild_qtensor"): _quantised,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.serialization", "_get_layout"): _layout,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}
_TORCH_DTYPES = re.compile(r"(b?float|q?u?int|complex|bits)\d+\w*|half|double|bool|per_\w+_affine")


def torch_dtype(module: str, name: str) -> TorchDtype | None:
    """The stub for a global that names one of torch's types; None for other globals."""
    if len(name) > SHOWN:
        return None
    if module in ("torch", "torch.storage") and name.endswith("Storage") and name.isalnum():
        return TorchDtype(name.removesuffix("Storage"))
    if module == "torch" and _TORCH_DTYPES.fullmatch(name):
        return TorchDtype(name)
    return None
