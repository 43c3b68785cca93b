"""Sets of images to measure, read on access: a folder, or the images in an .npz file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.eval.npz import StoredArray, stored_arrays

IMAGES = "arr_0"  # the name that numpy.savez gives its first array


class FolderImages(ImageFolder):
    """The images of a folder. With `mixed` they may differ in size.

    Raises: UserError as ImageFolder.
    """

    def __init__(self, path: Path, files: Sequence[str] = (), *, mixed: bool = False):
        super().__init__(path, files)
        self.mixed = mixed

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        if self.mixed:
            return self._read(self.files[i])
        try:
            return super().__getitem__(i)
        except UserError as error:
            if error.__cause__:  # the image cannot be read
                raise
            raise UserError(
                f"{error}, except for the protocols clean and cmmd, which resize each on its own"
            ) from error

    def subset(self, indices: Sequence[int]) -> "FolderImages":
        return FolderImages(self.path, [self.files[i] for i in indices], mixed=self.mixed)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in an .npz file, such as the reference batches and samples of guided-diffusion.

    Attributes:
      pixels: all images, mapped into memory.
      indices: of the images in the set.
    """

    path: Path
    pixels: UInt8[np.ndarray, "n H W 3"]
    indices: Sequence[int]

    @classmethod
    def of(cls, stored: StoredArray) -> "ArrayImages":
        """UserError unless the array holds images."""
        shape = stored.shape
        if stored.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UserError(
                f"{IMAGES} in {stored.path} must hold images, uint8 of shape (images, height, "
                f"width, 3), got {stored.dtype} of shape {shape}"
            )
        return cls(stored.path, stored.mapped(), range(shape[0]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        return np.array(self.pixels[self.indices[i]])

    def subset(self, indices: Sequence[int]) -> "ArrayImages":
        return dataclasses.replace(self, indices=[self.indices[i] for i in indices])


@dataclasses.dataclass(frozen=True)
class ResizedImages:
    """The images of a set, resized with Pillow's bicubic filter to `size` (height, width)."""

    source: ImageFolder | ArrayImages
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        image = Image.fromarray(self.source[i])
        return np.asarray(image.resize(self.size[::-1], Image.Resampling.BICUBIC))

    def describe(self) -> str:
        (height, width), before = self.size, self.source[0].shape
        return f"bicubic (Pillow), from {before[1]} x {before[0]} to {width} x {height}"


def open_images(path: Path, *, mixed: bool = False) -> FolderImages | ArrayImages:
    """The images of a folder, which may differ in size with `mixed`, or of an .npz file."""
    if not path.is_file():
        return FolderImages(path, mixed=mixed)
    stored = stored_arrays(path, (IMAGES,))
    if IMAGES not in stored:
        raise UserError(f"{path} does not hold images as the array {IMAGES} of an .npz file")
    return ArrayImages.of(stored[IMAGES])
