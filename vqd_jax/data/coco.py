"""MS-COCO 2014 as it is distributed: its validation part is "held_out_items"."""

import json
import pathlib
from typing import TypeVar

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits, tfds_sets
from vqd_jax.data.image_files import (
    ImageFiles,
    existing_folder,
    first_existing,
    folder_source,
    list_images,
    summarise,
)
from vqd_jax.data.source import Record
from vqd_jax.data.text.captions import lower_case

Value = TypeVar("Value")

ABOUT = (
    "MS-COCO 2014 is annotations/captions_{train,val}2014.json beside the image folders train2014 "
    "and val2014, all from cocodataset.org"
)


def coco(*, path: str) -> ImageFiles:
    """MS-COCO 2014 with a record for each caption; most images have five.

    path: the folder that holds annotations/, train2014/ and val2014/, or a set of
    tensorflow-datasets.
    """
    root = existing_folder("coco", path, ABOUT)
    if tfds_sets.is_tfds(root):
        return _from_tfds(root)
    records, files, sizes = [], [], {}
    for part, split in (("train2014", splits.TRAIN), ("val2014", splits.ITEMS)):
        table = root / "annotations" / f"captions_{part}.json"
        names, captions = _read_table(table)
        images = first_existing([root / part / part, root / part])
        if not images:
            raise UserError(f"there is no folder {root / part}: {ABOUT}")
        inside, found = images.relative_to(root).as_posix(), list_images(images)
        if missing := sorted({names[image] for _, image, _ in captions} - found.keys()):
            raise UserError(
                f"{images} lacks {summarise(missing)} of the images that {table} names: {ABOUT}"
            )
        for number, image, caption in captions:
            name = names[image]
            records.append(_record(name, number, caption, split))
            files.append(f"{inside}/{name}")
            sizes[files[-1]] = found[name]
    return folder_source("coco", root, records, files, sizes)


def _from_tfds(root: pathlib.Path) -> ImageFiles:
    """All splits of the TFDS set. They differ from the original ones, which the file names tell."""
    stored = tfds_sets.load(root, "coco_captions", "image/filename")
    part = lambda file: splits.TRAIN if "train2014" in file else splits.ITEMS
    found = sorted(
        (part(file) != splits.TRAIN, number, file, lower_case(text))
        for file, captions in stored.captions.items()
        for number, text in captions
    )
    records = [_record(file, number, text, part(file)) for _, number, file, text in found]
    return ImageFiles(
        "coco", root, records, [file for _, _, file, _ in found], stored.sizes, stored.read
    )


def _record(file: str, number: int, caption: str, split: str) -> Record:
    stem = pathlib.PurePosixPath(file).stem
    return Record(item=f"{stem}/{number}", group=stem, captions=(caption,), split=split)


def _read_table(path: pathlib.Path) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
    """Image → file name, and (caption number, image, caption) sorted by number."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: {ABOUT}")
    try:
        with path.open(encoding="utf-8") as file:
            table = json.load(file)
        names = {
            _typed(int, image["id"]): _typed(str, image["file_name"]) for image in table["images"]
        }
        captions = sorted(
            (
                _typed(int, entry["id"]),
                _typed(int, entry["image_id"]),
                lower_case(_typed(str, entry["caption"])),
            )
            for entry in table["annotations"]
        )
        unknown = {image for _, image, _ in captions} - names.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a caption file of MS-COCO ({type(error).__name__}: {error})"
        ) from error
    if unknown:
        raise UserError(f"{path} has captions of images that it does not list")
    if not captions:
        raise UserError(f"there are no captions in {path}")
    return names, captions


def _typed(kind: type[Value], value: object) -> Value:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value
