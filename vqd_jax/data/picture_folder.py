"""The pictures of a folder, numbered in the order of their paths, all of one size: what measures
and other projects read and write.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.data.files import SUFFIXES, printable, scan
from vqd_jax.data.images import decode, reason


class PictureFolder:
    """Pictures that are read when they are asked for; several threads may ask.

    `files`: some of them by name, instead of all in the folder and the folders in it. UserError if
    there is none, or if one cannot be read or has another size than the first.
    """

    def __init__(self, path: pathlib.Path, files: Sequence[str] = ()):
        if not path.is_dir():
            raise UserError(f"there is no folder {path} of pictures")
        self.path, self.files = path, [*files] or list(scan(path))
        if not self.files:
            raise UserError(
                f"there are no pictures in {path}; files ending in {' '.join(SUFFIXES)} are read"
            )
        self._shape = self._read(self.files[0]).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        image = self._read(self.files[i])
        if image.shape != self._shape:
            size = lambda shape: f"{shape[1]} x {shape[0]}"
            raise UserError(
                f"the pictures in {self.path} are of several sizes, {size(self._shape)} as "
                f"{printable(self.files[0])} and "
                f"{size(image.shape)} as {printable(self.files[i])}: measures compare sets whose "
                "pictures all have one size"
            )
        return image

    def _read(self, file: str) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return decode((self.path / file).read_bytes())
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UserError(
                f"the picture {self.path / printable(file)} cannot be read ({reason(error)})"
            ) from error
