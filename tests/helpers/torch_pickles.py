"""Writes pickles as torch.save does, without PyTorch."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np


class Storage:
    def __init__(self, kind, data):
        self.kind, self.data = kind, np.ascontiguousarray(data).ravel()


def save(path, legacy, make):
    """Writes the tree that `make(tensor)` returns as torch.save would, with stubs for torch's
    globals; `tensor(storage, offset, shape, strides)` makes a tensor.
    """
    torch = types.ModuleType("torch")
    utils = types.ModuleType("torch._utils")
    storages = []

    def named(name, module, thing):
        thing.__module__, thing.__qualname__, thing.__name__ = module.__name__, name, name
        setattr(module, name, thing)
        return thing

    rebuild = named("_rebuild_tensor_v2", utils, lambda *_: None)
    for name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage"):
        named(name, torch, type(name, (), {}))

    class Tensor:
        def __init__(self, storage, offset, shape, strides):
            self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

        def __reduce__(self):
            return rebuild, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            if thing not in storages:
                storages.append(thing)
            entry = (
                "storage",
                getattr(torch, thing.kind),
                str(storages.index(thing)),
                "cpu",
                thing.data.size,
            )
            return (*entry, None) if legacy else entry

    real = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        stream = io.BytesIO()
        Pickler(stream, protocol=2).dump(make(Tensor))
    finally:
        for name, module in real.items():
            sys.modules.pop(name) if module is None else sys.modules.__setitem__(name, module)
    if legacy:
        header = (
            0x1950A86A20F9469CFC6C,
            1001,
            {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
        )
        with open(path, "wb") as file:
            for part in header:
                pickle.dump(part, file, protocol=2)
            file.write(stream.getvalue())
            pickle.dump([str(i) for i in range(len(storages))], file, protocol=2)
            file.writelines(
                struct.pack("<q", storage.data.size) + storage.data.tobytes()
                for storage in storages
            )
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("name/data.pkl", stream.getvalue())
            archive.writestr("name/byteorder", "little")
            for i, storage in enumerate(storages):
                archive.writestr(f"name/data/{i}", storage.data.tobytes())
