"""CUB-200 birds and Oxford-102 flowers as they are distributed: a file of captions for each image,
in folders of classes, and an official split whose test part is "held_out_items".
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits, tfds_sets
from vqd_jax.data.found_instead import found_instead
from vqd_jax.data.image_files import (
    ImageFiles,
    existing_folder,
    first_existing,
    folder_source,
    list_images,
    map_threads,
    summarise,
)
from vqd_jax.data.official_split import official_split
from vqd_jax.data.source import Record
from vqd_jax.data.text.captions import lower_case


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """The layout of a set.

    Args:
      name: its name in the config.
      images: where its folder of images may be.
      flat: whether the name of an image is unique without its class.
      tfds: its name in tensorflow-datasets, and the feature with the file name of an image.
      about: describes the layout and its origin, for messages.
    """

    name: str
    images: tuple[str, ...]
    flat: bool
    tfds: tuple[str, str]
    about: str

    def key(self, path: str) -> str:
        """The part that the paths of an image and of its captions share."""
        full = pathlib.PurePosixPath(path)
        known = full.suffix.lower() in (".jpg", ".jpeg", ".png", ".txt")
        stem = full.stem if known else full.name
        return stem if self.flat else f"{full.parent.name}/{stem}"

    def joined(self, keys: Iterable[str]) -> Callable[[str], str]:
        """`key` for captions and lists of images that have these keys: where their class folder has
        another name, it is that of the image with the same number.
        """
        known, by_number = set(keys), {}
        for key in known:
            number = _number(key)
            by_number[number] = key if number not in by_number else ""

        def key_of(path: str) -> str:
            key = self.key(path)
            return key if key in known else by_number.get(_number(key)) or key

        return key_of


def _number(key: str) -> tuple[int, str, str]:
    """The number of the class in a key, or else -1 and its name, and the name of the image."""
    folder, _, stem = key.casefold().rpartition("/")
    number = re.search(r"\d+", folder)
    return (int(number[0]), "", stem) if number else (-1, folder, stem)


CUB = _Layout(
    name="cub",
    images=("images", "CUB_200_2011/images"),
    flat=False,
    tfds=("caltech_birds2011", "image/filename"),
    about="CUB-200 is images/<class>/<image>.jpg, from the Caltech CUB-200-2011 archive, and "
    "text/<class>/<image>.txt with a caption a line, from the caption archive distributed with "
    "StackGAN and DF-GAN",
)
CAPTIONS = ("text", "text_c10")  # the folders of captions
BESIDE = (*CAPTIONS, "train", "test")  # the folders beside those of images
FLOWERS = _Layout(
    name="flowers",
    images=("jpg", "images"),
    flat=True,
    tfds=("oxford_flowers102", "file_name"),
    about="Oxford-102 flowers is jpg/image_00001.jpg, from robots.ox.ac.uk/~vgg/data/flowers/102, "
    "and text_c10/class_00001/image_00001.txt with a caption a line, from the captions of "
    "reedscot/cvpr2016",
)


def cub(*, path: str, captions: str = "") -> ImageFiles:
    """CUB-200-2011; the label is the index of the class in the order of the folders' numbers.

    The split is that of {train,test}/filenames.pickle, else of {trainval,test}classes.txt (both
    hold out whole classes, as in the paper), else of the archive's train_test_split.txt.

    Args:
      path: the folder that holds images/ or CUB_200_2011/images/, or a set of tensorflow-datasets.
      captions: the folder that holds text/ or text_c10/, if it is another one.
    """
    return _captioned(CUB, path, captions)


def flowers(*, path: str, captions: str = "") -> ImageFiles:
    """Oxford-102 flowers; the label is the index of the captions' class folder in the order of its
    number. Otherwise as `cub`.
    """
    return _captioned(FLOWERS, path, captions)


def _captioned(layout: _Layout, path: str, captions: str) -> ImageFiles:
    root = existing_folder(layout.name, path, layout.about)
    stored = tfds_sets.load(root, *layout.tfds) if tfds_sets.is_tfds(root) else None
    if stored:
        if not captions:
            raise UserError(
                f"the TFDS set in {root} has no captions, so {layout.name}.captions must name "
                f"their folder: {layout.about}"
            )
        images, sizes = root, dict(sorted(stored.sizes.items()))
    else:
        images = first_existing(root / name for name in layout.images)
        if not images:
            there = found_instead(root, layout.images, [layout.images[0], *BESIDE])
            raise UserError(f"there is no folder {root / layout.images[0]}{there}: {layout.about}")
        sizes = list_images(images)
    if not sizes:
        raise UserError(f"there are no images in {images}: {layout.about}")
    keys = {file: layout.key(file) for file in sizes}
    key_of = layout.joined(keys.values())
    texts = _caption_files(layout, root, captions, key_of)
    if bare := [file for file in sizes if keys[file] not in texts]:
        folder = lambda file: keys[file].rpartition("/")[0]
        joined = {folder(file) for file in sizes if keys[file] in texts}
        if alone := sorted({*map(folder, bare)} - joined - {""}):
            raise UserError(
                f"the class folders {summarise(alone)} in {images} have no partner among those of "
                f"the captions, by name or by number: {layout.about}"
            )
        raise UserError(
            f"{summarise(bare)} of the {len(sizes)} images in {images} have no caption file: "
            f"{layout.about}"
        )
    classes = {key: texts[key].parent.name for key in keys.values()}
    folders = [root, images.parent]
    if captions:
        folders.append(pathlib.Path(captions).expanduser())
    default = {
        keys[file]: splits.ITEMS if part == "test" else splits.TRAIN
        for file, part in (stored.splits if stored else {}).items()
    }
    split = official_split(layout.name, layout.about, key_of, folders, classes, default)
    kept = [file for file in sizes if keys[file] in split]
    lines = map_threads(
        _read_captions, [texts[keys[file]] for file in kept], "reading captions", "file"
    )
    names = sorted(set(classes.values()), key=lambda name: (_number(f"{name}/"), name))
    labels = {name: i for i, name in enumerate(names)}
    records = [
        Record(
            item=keys[file],
            group=keys[file],
            captions=own,
            split=split[keys[file]],
            label=labels[classes[keys[file]]],
        )
        for file, own in zip(kept, lines)
    ]
    if stored:
        return ImageFiles(layout.name, root, records, kept, sizes, stored.read)
    return folder_source(layout.name, images, records, kept, sizes)


def _caption_files(
    layout: _Layout, root: pathlib.Path, captions: str, key_of: Callable[[str], str]
) -> dict[str, pathlib.Path]:
    """Key of an image → its caption file."""
    parent = existing_folder(layout.name, captions, layout.about) if captions else root
    folders = [parent / name for name in ("text/text", *CAPTIONS)]
    if captions:
        folders.append(parent)
    for folder in folders:
        found = {
            layout.key(f"{file.parent.name}/{file.name}"): file
            for file in sorted(folder.glob("*/*.txt"))
        }
        if found:
            return {key_of(key): file for key, file in found.items()} | found
    there = found_instead(parent, CAPTIONS, [layout.images[0], *BESIDE])
    raise UserError(
        f"there are no caption files in {folders[1]}, its folder text, or text_c10{there}: "
        f"{layout.about}"
    )


def _read_captions(path: pathlib.Path) -> tuple[str, ...]:
    """The captions in a file, one a line, without repetitions; at least one."""
    try:
        lines = path.read_bytes().decode("utf-8-sig", "replace").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    captions = tuple(dict.fromkeys(filter(None, map(lower_case, lines))))
    if not captions:
        raise UserError(f"there is no caption in {path}: one a line is expected")
    return captions
