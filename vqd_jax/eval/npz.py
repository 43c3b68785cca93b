"""Arrays in .npz files of other tools: shapes and types are known before anything is allocated,
nothing is unpickled, and large arrays are mapped into memory instead of being read.
"""

import functools
import math
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqd_jax.core.errors import UserError

LOCAL_HEADER = 30  # bytes of a member's header in a ZIP file, before its name and extra field
READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array in an .npz file that has not been read. Its values begin at byte `start` of its
    member of the archive.
    """

    path: Path
    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    order: str
    start: int

    def read(self) -> np.ndarray:
        """The values in memory."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                return stored[self.member.filename.removesuffix(".npy")]
        except Exception as error:  # damaged archives raise many kinds
            raise _unreadable(self.path, error) from error

    def mapped(self) -> np.memmap:
        """The values, which the system reads on access; those of a compressed file are extracted
        into a temporary file first.
        """
        open_map = functools.partial(
            np.memmap, dtype=self.dtype, shape=self.shape, order=self.order, mode="r"
        )
        try:
            with self.path.open("rb") as file:
                if self.member.compress_type == zipfile.ZIP_STORED:
                    file.seek(self.member.header_offset + LOCAL_HEADER - 4)
                    more = sum(struct.unpack("<HH", file.read(4)))
                    start = self.member.header_offset + LOCAL_HEADER + more + self.start
                    return open_map(file, offset=start)
            with (
                tempfile.TemporaryFile() as extracted,
                zipfile.ZipFile(self.path) as archive,
                archive.open(self.member) as content,
            ):
                shutil.copyfileobj(content, extracted, 2**20)
                extracted.flush()
                return open_map(extracted, offset=self.start)
        except Exception as error:
            raise _unreadable(self.path, error) from error


def stored_arrays(path: Path, names: Iterable[str]) -> dict[str, StoredArray]:
    """Those of the named arrays that an .npz file holds. UserError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = {*archive.namelist()}
            return {
                name: _stored(path, archive, archive.getinfo(f"{name}.npy"))
                for name in names
                if f"{name}.npy" in there
            }
    except Exception as error:
        raise _unreadable(path, error) from error


def _stored(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> StoredArray:
    with archive.open(member) as file:
        shape, fortran, dtype = READERS[np.lib.format.read_magic(file)](file)
        start = file.tell()
    if not dtype.hasobject and start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{member.filename} does not have the size of its {dtype} of {shape}")
    return StoredArray(
        path=path,
        member=member,
        shape=shape,
        dtype=dtype,
        order="F" if fortran else "C",
        start=start,
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable .npz file ({type(error).__name__}: {error})")
