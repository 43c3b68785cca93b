"""Stubs for the globals of published pickles: plain data in place of the objects of numpy and
torch, and nothing that runs code.
"""

import collections
import math
import pickle
from dataclasses import dataclass

import ml_dtypes
import numpy as np

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
# Modules of other objects in published checkpoints
PLACEHOLDERS = ("pytorch_lightning.", "omegaconf.", "argparse.")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


class Placeholder:
    """Replaces an object that is not needed: accepts any state and stores nothing."""

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


class Module:
    """A module of a TorchScript archive: its parameters, buffers and children by name."""

    def __setstate__(self, state):
        self.state = state


class Ordered(collections.OrderedDict):
    """A state dictionary, without its versions."""

    def __setstate__(self, state):
        pass


class Dtype:
    """Stub for numpy.dtype, of numbers and text only."""

    def __init__(self, code, *_):
        self.dtype = np.dtype(code) if isinstance(code, str) else np.dtype("O")
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"numbers of the type {code!r}")

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """Stub for numpy.ndarray, made from its bytes, so that a false shape allocates no memory."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        self.values = _from_buffer(content, dtype, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
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


def _tensor(storage, offset, shape, strides, *_) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *_) -> Tensor:
    return tensor


def _from_buffer(buffer, dtype, shape, order, *_) -> np.ndarray:
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order).copy()


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
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}
