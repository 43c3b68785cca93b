"""The captioned sets of the paper as they are distributed: CUB-200 birds, Oxford-102 flowers,
MS-COCO 2014.

Captions are lower-cased and their white space is normalised; the official test (COCO: validation)
part is "held_out_items".
"""

import dataclasses
import json
import logging
import pathlib
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.safe_pickle import Unpickler
from vqd_jax.data import splits, tfds_sets
from vqd_jax.data.files import (
    Files,
    existing_folder,
    map_threads,
    open_folder,
    read_list,
    scan,
    summarise,
    tree,
)
from vqd_jax.data.source import Record

HELD_OUT = 0.1  # share, by a hash of the name, of a set that comes without its official split


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Set:
    """A set with a caption file per image, in a folder per class."""

    name: str
    images: tuple[str, ...]  # where the images may be
    # images are not in folders of their class: a name alone tells which caption file is theirs
    flat: bool
    tfds: tuple[
        str, str
    ]  # its name in tensorflow-datasets, and the feature with the name of an image
    about: str  # the layout and where people get it

    def key(self, path: str) -> str:
        """What the path of an image and that of its captions have in common."""
        whole = pathlib.PurePosixPath(path)
        stem = (
            whole.stem if whole.suffix.lower() in (".jpg", ".jpeg", ".png", ".txt") else whole.name
        )
        return stem if self.flat else f"{whole.parent.name}/{stem}"


CUB = _Set(
    name="cub",
    images=("images", "CUB_200_2011/images"),
    flat=False,
    tfds=("caltech_birds2011", "image/filename"),
    about="CUB-200 is images/<class>/<image>.jpg, from the Caltech CUB-200-2011 archive, and "
    "text/<class>/<image>.txt with "
    "a caption a line, from the caption archive distributed with the data of StackGAN and DF-GAN",
)
FLOWERS = _Set(
    name="flowers",
    images=("jpg", "images"),
    flat=True,
    tfds=("oxford_flowers102", "file_name"),
    about="Oxford-102 flowers is jpg/image_00001.jpg, from robots.ox.ac.uk/~vgg/data/flowers/102, "
    "and "
    "text_c10/class_00001/image_00001.txt with a caption a line, from the captions of "
    "reedscot/cvpr2016",
)
COCO = (
    "MS-COCO 2014 is annotations/captions_{train,val}2014.json beside the folders train2014 and "
    "val2014 of images, all "
    "from cocodataset.org"
)


def cub(*, path: str, captions: str = "") -> Files:
    """CUB-200-2011; the label is the place of the class in alphabetical order.

    The split is that of {train,test}/filenames.pickle, else of {trainval,test}classes.txt (both
    hold out whole classes, as in the paper), else of the archive's own train_test_split.txt.
    path: the folder that holds images/, or CUB_200_2011/images/. captions: the one that holds text/
    or text_c10/, if another.
    """
    return _captioned(CUB, path, captions)


def flowers(*, path: str, captions: str = "") -> Files:
    """Oxford-102 flowers; the label is the place of the captions' class folder in alphabetical
    order. As `cub` otherwise.
    """
    return _captioned(FLOWERS, path, captions)


def coco(*, path: str) -> Files:
    """MS-COCO 2014: a record for each caption, so that most pictures come five times."""
    root = open_folder("coco", path, COCO)
    if tfds_sets.is_tfds(root):
        return _coco_tfds(root)
    records, files, sizes = [], [], {}
    for part, split in (("train2014", splits.TRAIN), ("val2014", splits.ITEMS)):
        table = root / "annotations" / f"captions_{part}.json"
        names, captions = _coco_table(table)
        images = existing_folder([root / part / part, root / part])
        if not images:
            raise UserError(f"There is no folder {root / part}: {COCO}.")
        inside, found = images.relative_to(root).as_posix(), scan(images)
        if missing := sorted({names[image] for _, image, _ in captions} - found.keys()):
            raise UserError(
                f"{images} lacks {summarise(missing)} of the images that {table} names: {COCO}."
            )
        for number, image, caption in captions:
            name = names[image]
            records.append(_annotation(name, number, caption, split))
            files.append(f"{inside}/{name}")
            sizes[files[-1]] = found[name]
    return tree("coco", root, records, files, sizes)


def _coco_tfds(root: pathlib.Path) -> Files:
    """All parts of the TFDS set, whose own split is another: the file names tell the original one."""
    stored = tfds_sets.load(root, "coco_captions", "image/filename")
    part = lambda file: splits.TRAIN if "train2014" in file else splits.ITEMS
    found = sorted(
        (part(file) != splits.TRAIN, number, file, plain(text))
        for file, own in stored.captions.items()
        for number, text in own
    )
    records = [_annotation(file, number, text, part(file)) for _, number, file, text in found]
    return Files(
        "coco", root, records, [file for _, _, file, _ in found], stored.sizes, stored.read
    )


def _annotation(file: str, number: int, caption: str, split: str) -> Record:
    stem = pathlib.PurePosixPath(file).stem
    return Record(item=f"{stem}/{number}", group=stem, captions=(caption,), split=split)


def plain(caption: str) -> str:
    """Lower-case, single spaces; the files have bytes that were lost on their way (U+FFFD)."""
    return " ".join(caption.replace("\ufffd", " ").lower().split())


def _captioned(kind: _Set, path: str, captions: str) -> Files:
    root = open_folder(kind.name, path, kind.about)
    stored = tfds_sets.load(root, *kind.tfds) if tfds_sets.is_tfds(root) else None
    if stored and not captions:
        raise UserError(
            f"The TFDS set in {root} has no captions, {kind.name}.captions must be their folder: "
            f"{kind.about}."
        )
    images = root if stored else existing_folder(root / name for name in kind.images)
    if not images:
        raise UserError(f"There is no folder {root / kind.images[0]}: {kind.about}.")
    sizes = dict(sorted(stored.sizes.items())) if stored else scan(images)
    if not sizes:
        raise UserError(f"There are no images in {images}: {kind.about}.")
    keys = {file: kind.key(file) for file in sizes}
    texts = caption_files(kind, root, captions)
    if bare := [file for file in sizes if keys[file] not in texts]:
        raise UserError(
            f"{summarise(bare)} of the {len(sizes)} images in {images} have no caption file: "
            f"{kind.about}."
        )
    classes = {key: texts[key].parent.name for key in keys.values()}
    places = [root, images.parent, *([pathlib.Path(captions).expanduser()] if captions else [])]
    default = (
        {
            keys[file]: splits.ITEMS if part == "test" else splits.TRAIN
            for file, part in stored.splits.items()
        }
        if stored
        else {}
    )
    split = _official(kind, places, classes, default)
    kept = [file for file in sizes if keys[file] in split]
    lines = read_captions([texts[keys[file]] for file in kept])
    order = {name: i for i, name in enumerate(sorted(set(classes.values())))}
    records = [
        Record(
            item=keys[file],
            group=keys[file],
            captions=own,
            split=split[keys[file]],
            label=order[classes[keys[file]]],
        )
        for file, own in zip(kept, lines)
    ]
    return (
        Files(kind.name, root, records, kept, sizes, stored.read)
        if stored
        else tree(kind.name, images, records, kept, sizes)
    )


def caption_files(kind: _Set, root: pathlib.Path, captions: str) -> dict[str, pathlib.Path]:
    """What an image's name has in common with its caption file → that file."""
    places = [open_folder(kind.name, captions, kind.about)] if captions else [root]
    places = [place / name for place in places for name in ("text/text", "text", "text_c10")] + (
        places if captions else []
    )
    for place in places:
        if found := {
            kind.key(f"{file.parent.name}/{file.name}"): file
            for file in sorted(place.glob("*/*.txt"))
        }:
            return found
    raise UserError(
        f"There are no caption files in {places[1]}, nor in its folder text, nor in text_c10: "
        f"{kind.about}."
    )


def read_captions(paths: list[pathlib.Path]) -> list[tuple[str, ...]]:
    """The captions in each file, one a line, without repetitions; at least one."""

    def read(path: pathlib.Path) -> tuple[str, ...]:
        try:
            lines = path.read_bytes().decode("utf-8-sig", "replace").split("\n")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        if not (own := tuple(dict.fromkeys(caption for line in lines if (caption := plain(line))))):
            raise UserError(f"There is no caption in {path}: one a line is expected.")
        return own

    return map_threads(read, paths, "reading captions", "file")


def _official(
    kind: _Set, places: list[pathlib.Path], classes: dict[str, str], default: dict[str, str]
) -> dict[str, str]:
    """Image → split, by the first kind of list that is there, else `default`; images in no list are
    left out.

    Official lists are of images (pickled, or numbered in CUB's own archive) or of whole classes.
    """
    named = (
        ("train/filenames.pickle", "test/filenames.pickle"),
        ("trainvalclasses.txt", "testclasses.txt"),
    )
    out: dict[str, str] = {}
    for names in named:
        found = [existing_folder(place / name for place in places) for name in names]
        if any(found):
            for name, path, split in zip(names, found, (splits.TRAIN, splits.ITEMS)):
                if not path:
                    raise UserError(
                        f"There is no {places[0] / name} beside {next(filter(None, found))}: a "
                        "split needs both."
                    )
                if path.suffix == ".pickle":
                    own = [kind.key(item) for item in _unpickled(path)]
                    if missing := sorted(set(own) - classes.keys()):
                        raise UserError(
                            f"{path} lists {summarise(missing)} that are not among the images: "
                            f"{kind.about}."
                        )
                else:
                    chosen = set(read_list(path))
                    own = [key for key, name in classes.items() if name in chosen]
                out |= {key: split for key in own}
            break
    else:
        out = _numbered(kind, places) or default or _hashed(kind, places[-1], classes)
    if left := sorted(classes.keys() - out.keys()):
        logging.warning(
            "%s images of %s are in neither list of its split and are left out",
            summarise(left),
            kind.name,
        )
    if not (kept := {key: split for key, split in out.items() if key in classes}):
        raise UserError(
            f"The lists of the split of {kind.name} in {places[0]} name none of its images: "
            f"{kind.about}."
        )
    return kept


def _numbered(kind: _Set, places: list[pathlib.Path]) -> dict[str, str]:
    """The split of CUB's own archive: images.txt numbers the images, train_test_split.txt has a 1
    for those of training.
    """
    numbers, parts = (
        existing_folder(place / name for place in places)
        for name in ("images.txt", "train_test_split.txt")
    )
    if not (numbers and parts):
        return {}
    try:
        training = {number: int(flag) for number, flag in _pairs(parts)}
        return {
            kind.key(name): splits.TRAIN if training[number] else splits.ITEMS
            for number, name in _pairs(numbers)
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f'{numbers} and {parts} do not number the same images, one "<number> <value>" a line.'
        ) from error


def _pairs(path: pathlib.Path) -> Iterator[list[str]]:
    return (line.split() for line in read_list(path))


def _hashed(kind: _Set, place: pathlib.Path, keys: Iterable[str]) -> dict[str, str]:
    logging.warning(
        "%s has no list of an official split (train/filenames.pickle and test/filenames.pickle): "
        "%.0f %% of %s "
        "are held out, by a hash of the name",
        place,
        100 * HELD_OUT,
        kind.name,
    )
    split = splits.assign(((key, "") for key in keys), held_out_cells=0.0, held_out_items=HELD_OUT)
    return {key: value for (key, _), value in split.items()}


def _unpickled(path: pathlib.Path) -> list[str]:
    try:
        with path.open("rb") as file:
            names = Unpickler(file, encoding="latin1").load()  # strings of any Python
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) for name in names)
        ):
            raise pickle.UnpicklingError("something else")
        return names
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a pickled list of file names (found {error}).") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(
            f"{path} is not a pickled list of file names, or it is damaged "
            f"({type(error).__name__})."
        ) from error


def _coco_table(path: pathlib.Path) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
    """Image → file name, and (number, image, caption) in the order of the numbers."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: {COCO}.")
    try:
        with path.open(encoding="utf-8") as file:
            table = json.load(file)
        names = {_of(int, image["id"]): _of(str, image["file_name"]) for image in table["images"]}
        captions = sorted(
            (_of(int, entry["id"]), _of(int, entry["image_id"]), plain(_of(str, entry["caption"])))
            for entry in table["annotations"]
        )
        unknown = {image for _, image, _ in captions} - names.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a caption file of MS-COCO ({type(error).__name__}: {error})."
        ) from error
    if unknown or not captions:
        raise UserError(
            f"{path} has captions of images that it does not list."
            if unknown
            else f"There are no captions in {path}."
        )
    return names, captions


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value
