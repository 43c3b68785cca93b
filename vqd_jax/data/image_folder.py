"""A folder of images of one size, in the order of their paths: the input of evaluation measures."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vqd_jax.core.errors import UserError, printable
from vqd_jax.data.image_bytes import decode, reason
from vqd_jax.data.image_files import SUFFIXES, list_images


class ImageFolder:
    """The images of a folder and of the folders in it, read on access from any thread.

    Args:
      path: the folder.
      files: the names of some files, to read only these.
    Raises: UserError if there is no image, or if one cannot be read or differs from the first in
      size.
    """

    def __init__(self, path: pathlib.Path, files: Sequence[str] = ()):
        if not path.is_dir():
            raise UserError(f"there is no folder {path} of images")
        self.path, self.files = path, [*files] or list(list_images(path))
        if not self.files:
            raise UserError(
                f"there are no images in {path}; files ending in {' '.join(SUFFIXES)} are read"
            )
        self._shape = self._read(self.files[0]).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        image = self._read(self.files[i])
        if image.shape != self._shape:
            size = lambda shape: f"{shape[1]} x {shape[0]}"
            raise UserError(
                f"the images in {self.path} differ in size: {printable(self.files[0])} has "
                f"{size(self._shape)} pixels and {printable(self.files[i])} "
                f"{size(image.shape)}; measures compare images of one size"
            )
        return image

    def _read(self, file: str) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return decode((self.path / file).read_bytes())
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UserError(
                f"the image {self.path / printable(file)} cannot be read ({reason(error)})"
            ) from error
