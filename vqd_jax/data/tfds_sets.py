"""Reads data sets that tensorflow-datasets prepared as array_record files, without TensorFlow.

Opening a set reads it once, for the names and sizes of its images.
"""

import contextlib
import dataclasses
import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record
from vqd_jax.data.source import Items
from vqd_jax.runtime.progress import track


@dataclasses.dataclass(frozen=True)
class TFDSImages:
    """The images of a set, by file name.

    Args:
      sizes: bytes of each file.
      splits: the TFDS name of its split.
      captions: (number, caption) pairs, where the set has captions.
      rows: the split that holds the file, and its index there.
    """

    sizes: dict[str, int]
    splits: dict[str, str]
    captions: dict[str, list[tuple[int, str]]]
    rows: dict[str, tuple[Items, int]]

    def read(self, file: str) -> bytes:
        """The content of an image file. Raises the errors of array_record if the set is damaged."""
        stored, row = self.rows[file]
        return stored[row]["image"]


def is_tfds(root: pathlib.Path) -> bool:
    """Whether the folder is a set of tensorflow-datasets."""
    return (root / "features.json").is_file() and (root / "dataset_info.json").is_file()


def load(root: pathlib.Path, name: str, key: str) -> TFDSImages:
    """Opens the set `name` in the folder with its features.json; the feature `key` holds the file
    name of an image.
    """
    out = TFDSImages({}, {}, {}, {})
    for split, stored in _open_splits(root, name).items():
        examples = (stored[i] for i in range(len(stored)))
        with damage(root):
            for row, example in enumerate(track(examples, len(stored), f"reading {root}", "image")):
                file = example[key].decode()
                out.sizes[file] = len(example["image"])
                out.splits[file], out.rows[file] = split, (stored, row)
                texts = example.get("captions", {"id": (), "text": ()})
                out.captions[file] = [
                    (int(number), text.decode()) for number, text in zip(texts["id"], texts["text"])
                ]
    return out


def damage(root: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """As `array_record.damage`, for a set that the user prepared."""
    return array_record.damage(root, "prepare it again with tensorflow-datasets")


def _open_splits(root: pathlib.Path, name: str) -> dict[str, Items]:
    tfds = array_record.tensorflow_datasets()

    with damage(root):
        builder = array_record.builder(root)
        if builder.name != name:
            raise UserError(f"{root} is the TFDS set {builder.name}; expected {name}")
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"the TFDS set in {root} is stored as {builder.info.file_format.value}, which "
                f"needs TensorFlow: prepare it with tfds build {name} --file_format=array_record"
            )
        return {split: array_record.encoded(builder, split) for split in builder.info.splits}
