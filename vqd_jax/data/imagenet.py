"""ImageNet as it is distributed: its validation part is "held_out_items"."""

import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.found_instead import found_instead
from vqd_jax.data.image_files import (
    ImageFiles,
    existing_folder,
    folder_source,
    list_images,
    read_lines,
    summarise,
)
from vqd_jax.data.source import Record

ABOUT = (
    "ImageNet is {train,val}/<synset>/<image>.JPEG, from image-net.org, with the images of val "
    "sorted into folders of their synsets"
)

PARTS = {"train": splits.TRAIN, "val": splits.ITEMS}


def imagenet(*, path: str) -> ImageFiles:
    """ImageNet: the label is the index of the synset in alphabetical order, and the caption is its
    identifier ("n01440764").

    If the folder has lists ILSVRC2012_name_{train,val}.txt, with a line <synset>/<image>.JPEG each,
    only the images in them are used.
    """
    root = existing_folder("imagenet", path, ABOUT)
    records, files, sizes, labels = [], [], {}, {}
    for part, split in PARTS.items():
        folder = root / part
        if not folder.is_dir():
            there = found_instead(root, [part], PARTS)
            raise UserError(f"there is no folder {folder}{there}: {ABOUT}")
        found = list_images(folder)
        if outside := [name for name in found if name.count("/") != 1]:
            raise UserError(
                f"{summarise(outside)} of the images in {folder} are not in a folder of their "
                f"synset: {ABOUT}"
            )
        if not found:
            raise UserError(f"there are no images in {folder}: {ABOUT}")
        synsets = sorted({name.split("/")[0] for name in found})
        labels = labels or {synset: i for i, synset in enumerate(synsets)}
        if unknown := [synset for synset in synsets if synset not in labels]:
            raise UserError(
                f"{folder} has synsets that {root / 'train'} lacks, {summarise(unknown)}: {ABOUT}"
            )
        captions = {synset: (synset,) for synset in synsets}
        for name in _select(root / f"ILSVRC2012_name_{part}.txt", folder, found):
            synset, file = name.split("/")
            records.append(
                Record(
                    item=f"{synset}/{file.rpartition('.')[0]}",
                    captions=captions[synset],
                    split=split,
                    label=labels[synset],
                )
            )
            files.append(f"{part}/{name}")
            sizes[files[-1]] = found[name]
    return folder_source("imagenet", root, records, files, sizes)


def _select(table: pathlib.Path, folder: pathlib.Path, found: dict[str, int]) -> list[str]:
    """The images that the table lists, with or without the name of their folder; all images if
    there is no table.
    """
    if not table.is_file():
        return list(found)
    lines = [
        line.replace("\\", "/").removeprefix("./").removeprefix(f"{folder.name}/")
        for line in read_lines(table)
    ]
    names = list(dict.fromkeys(filter(None, lines)))
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{table} lists {summarise(missing)} that are not in {folder}: {ABOUT}")
    if not names:
        raise UserError(f"there are no lines in {table}; a line is <synset>/<image>.JPEG")
    return names
