"""Data sets from config sections."""

from pathlib import Path

from ml_collections import ConfigDict

from vqd_jax.config.build import choose, encodes_online, tuples
from vqd_jax.data import emoji, emoji_art, prepared
from vqd_jax.data.captioned_datasets import CaptionedDatasets
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.data.coco import coco
from vqd_jax.data.cub_flowers import cub, flowers
from vqd_jax.data.dataset_stream import Selection
from vqd_jax.data.decode_check import check_decoding
from vqd_jax.data.ffhq import ffhq
from vqd_jax.data.image_bytes import COLOURS
from vqd_jax.data.image_files import ImageFiles
from vqd_jax.data.imagenet import imagenet
from vqd_jax.data.source import Source


def source(config: ConfigDict, cache: Path) -> Source:
    """The data set, read from the files that `vqd prepare` packed in the cache if there are any.

    Emoji are squares of data.image_size (of their own size for random crops); images of other sets
    have their own sizes.
    """
    found = raw_source(config, cache)
    if not isinstance(found, ImageFiles):
        return found
    read = prepared.open_prepared(str(cache), found, prepared_size(config))
    return check_decoding(read, str(cache)) if read is found else read


def raw_source(config: ConfigDict, cache: Path) -> Source:
    """The data set in the form in which it is distributed."""
    resolution = emoji_art.SIDE if encodes_online(config) else config.data.image_size
    colour = choose("data.colour", config.data.colour, {name: name for name in COLOURS})
    make = choose(
        "data.source",
        config.data.source,
        {
            "emoji": lambda: emoji.Emoji(
                cache=str(cache), resolution=resolution, **tuples(config.emoji)
            ),
            "folder": lambda: captioned_folder(**config.folder, condition=config.condition.kind),
            "datasets": lambda: CaptionedDatasets(
                Selection(**config.datasets, condition=config.condition.kind),
                cache=str(cache),
                size=prepared_size(config),
                colour=colour,
            ),
            "cub": lambda: cub(**config.cub),
            "flowers": lambda: flowers(**config.flowers),
            "coco": lambda: coco(**config.coco),
            "imagenet": lambda: imagenet(**config.imagenet),
            "ffhq": lambda: ffhq(**config.ffhq),
        },
    )
    made = make()
    return made.in_colour(colour) if isinstance(made, ImageFiles) else made


def prepared_size(config: ConfigDict) -> int | None:
    """The side of the squares that `vqd prepare` packs; None if training needs the original
    images.
    """
    return None if encodes_online(config) else config.data.image_size
