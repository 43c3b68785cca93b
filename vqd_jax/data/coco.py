"""MS-COCO 2014 or 2017 as it is distributed: its validation part is "held_out_items"."""

import json
import logging
import pathlib
from collections.abc import Iterable
from typing import TypeVar

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits, tfds_sets
from vqd_jax.data.found_instead import entries, found_instead
from vqd_jax.data.image_files import (
    ImageFiles,
    existing_folder,
    first_existing,
    folder_source,
    list_images,
    summarise,
)
from vqd_jax.data.official_split import HELD_OUT
from vqd_jax.data.source import Record
from vqd_jax.data.text.captions import lower_case

Value = TypeVar("Value")

YEARS = ("2014", "2017")
ABOUT = (
    "MS-COCO is annotations/captions_{train,val}2014.json beside the image folders train2014 and "
    "val2014, or the same of 2017, all from cocodataset.org"
)


def coco(*, path: str) -> ImageFiles:
    """MS-COCO with a record for each caption; most images have five.

    path: the folder that holds annotations/, train2014/ and val2014/, or those of 2017, or a set of
    tensorflow-datasets. Of a validation part without a training part, a share is held out by a hash
    of the file's name.
    """
    root = existing_folder("coco", path, ABOUT)
    if tfds_sets.is_tfds(root):
        return _from_tfds(root)
    records, files, sizes = [], [], {}
    parts = _parts(root)
    layout = ["annotations", *parts]
    for part in parts:
        table = _table(root, part, layout)
        names, captions = _read_table(table)
        images = _images(root, part)
        if not images:
            there = found_instead(root, [part], layout)
            raise UserError(f"there is no folder {root / part}{there}: {ABOUT}")
        inside, found = images.relative_to(root).as_posix(), list_images(images)
        if missing := sorted({names[image] for _, image, _ in captions} - found.keys()):
            raise UserError(
                f"{images} lacks {summarise(missing)} of the images that {table} names: {ABOUT}"
            )
        split = dict.fromkeys(names.values(), splits.TRAIN if "train" in part else splits.ITEMS)
        if len(parts) == 1:
            split = _hashed(names.values())
        for number, image, caption in captions:
            name = names[image]
            records.append(_record(name, number, caption, split[name]))
            files.append(f"{inside}/{name}")
            sizes[files[-1]] = found[name]
    return folder_source("coco", root, records, files, sizes)


def _parts(root: pathlib.Path) -> list[str]:
    """The training and the validation part of the year of which most lies there, or only the
    latter if there is nothing of the former.
    """
    names = entries(root)
    parts = lambda year: [part for part in ("train", "val") if _images(root, part + year)]
    year = max(YEARS, key=lambda year: (len(parts(year)), sum(year in name for name in names)))
    train, val = f"train{year}", f"val{year}"
    if parts(year) != ["val"] or any(name.startswith(train) for name in names):
        return [train, val]
    logging.warning(
        "%s has %s without %s: %.0f %% of its images are held out, by a hash of the name, and the "
        "others are for training; published results are measured on all of %s",
        root,
        val,
        train,
        100 * HELD_OUT,
        val,
    )
    return [val]


def _images(root: pathlib.Path, part: str) -> pathlib.Path | None:
    return first_existing([root / part / part, root / part, root / "images" / part])


def _table(root: pathlib.Path, part: str, layout: list[str]) -> pathlib.Path:
    name = f"annotations/captions_{part}.json"
    unpacked = root / f"annotations_trainval{part[-4:]}"  # the name of the archive
    table = first_existing([root / name, unpacked / name])
    if not table:
        there = found_instead(root, [name], layout)
        raise UserError(f"there is no file {root / name}{there}: {ABOUT}")
    return table


def _hashed(files: Iterable[str]) -> dict[str, str]:
    """File → split."""
    pairs = ((file, "") for file in files)
    split = splits.assign(pairs, held_out_cells=0.0, held_out_items=HELD_OUT)
    return {file: part for (file, _), part in split.items()}


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
