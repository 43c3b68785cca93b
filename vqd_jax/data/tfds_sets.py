"""Sets that tensorflow-datasets has prepared as array_record files, read without TensorFlow.

Opening one reads it through once, for the names and sizes of its pictures.
"""

import dataclasses
import pathlib
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.data import array_record
from vqd_jax.runtime.progress import track


@dataclasses.dataclass(frozen=True)
class Stored:
    """The pictures of a prepared set by file name: sizes in bytes, TFDS's names of their splits,
    and captions if it has any.
    """

    sizes: dict[str, int]
    splits: dict[str, str]
    captions: dict[str, list[tuple[int, str]]]  # (number, caption)
    rows: dict[str, tuple[Any, int]]

    def read(self, file: str) -> bytes:
        """The content of an image file; it raises what array_record raises if the set is damaged."""
        stored, row = self.rows[file]
        return stored[row]["image"]


def is_tfds(root: pathlib.Path) -> bool:
    return (root / "features.json").is_file() and (root / "dataset_info.json").is_file()


def load(root: pathlib.Path, name: str, key: str) -> Stored:
    """The set `name` in the directory that holds its features.json; `key` is the feature with an
    image's file name.
    """
    out = Stored({}, {}, {}, {})
    for split, stored in _splits(root, name).items():
        with damage(root):
            for row, example in enumerate(
                track(
                    (stored[i] for i in range(len(stored))), len(stored), f"reading {root}", "image"
                )
            ):
                file = example[key].decode()
                out.sizes[file], out.splits[file], out.rows[file] = (
                    len(example["image"]),
                    split,
                    (stored, row),
                )
                texts = example.get("captions", {"id": (), "text": ()})
                out.captions[file] = [
                    (int(number), text.decode()) for number, text in zip(texts["id"], texts["text"])
                ]
    return out


def damage(root: pathlib.Path) -> Any:
    """What prepare says of its own sets, without the promise to make it again."""
    return array_record.damage(root, "prepare it again with tensorflow-datasets")


def _splits(root: pathlib.Path, name: str) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    with damage(root):
        builder = tfds.builder_from_directory(str(root))
        if builder.name != name:
            raise UserError(f"{root} is the TFDS set {builder.name}, not {name}.")
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"The TFDS set in {root} is stored as {builder.info.file_format.value}, which "
                "needs TensorFlow: prepare "
                f"it with tfds build {name} --file_format=array_record."
            )
        return {split: array_record.encoded(builder, split) for split in builder.info.splits}
