"""The faces of FFHQ as they are distributed, without captions."""

import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.found_instead import found_instead
from vqd_jax.data.image_files import ImageFiles, existing_folder, folder_source, list_images
from vqd_jax.data.source import Record

ABOUT = "FFHQ is a folder of images, sub-folders allowed, from github.com/NVlabs/ffhq-dataset"
IMAGES = "images1024x1024"
TRAINING, ALL = 60_000, 70_000  # the first images train, as its authors recommend
HELD_OUT = 0.1  # the share, by a hash of the name, of other sets


def ffhq(*, path: str) -> ImageFiles:
    """FFHQ: the images below the folder, or below its images1024x1024/ if that exists.

    Files that are numbered as FFHQ's, 00000 to 69999, are "held_out_items" from 60000 on, as its
    authors recommend; for other sets a hash of the name decides.
    """
    root = existing_folder("ffhq", path, ABOUT)
    root = root / IMAGES if (root / IMAGES).is_dir() else root
    sizes = list_images(root)
    if not sizes:
        there = found_instead(root, [IMAGES])
        raise UserError(f"there are no images in {root}{there}: {ABOUT}")
    items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in sizes]
    names = [item.split("/")[-1] for item in items]
    if all(name.isdecimal() and len(name) == 5 and int(name) < ALL for name in names):
        held_out = [int(name) >= TRAINING for name in names]
    else:
        held_out = [splits.unit("item", item) < HELD_OUT for item in items]
    records = [
        Record(item=item, captions=("",), split=splits.ITEMS if held else splits.TRAIN)
        for item, held in zip(items, held_out)
    ]
    return folder_source("ffhq", root, records, list(sizes), sizes)
