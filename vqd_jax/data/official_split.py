"""The official splits of CUB-200 and Oxford-102, from whichever of their lists a folder has.

The lists name images (pickled, or numbered as in CUB's archive) or whole classes.
"""

import logging
import pathlib
import pickle
from collections.abc import Callable, Iterable

from vqd_jax.core.errors import UserError
from vqd_jax.core.safe_pickle import Unpickler
from vqd_jax.data import splits
from vqd_jax.data.image_files import first_existing, read_lines, summarise

HELD_OUT = 0.1  # the share of a set without lists, chosen by a hash of the name
LISTS = (
    ("train/filenames.pickle", "test/filenames.pickle"),
    ("trainvalclasses.txt", "testclasses.txt"),
)

Key = Callable[[str], str]  # path of an image → its key


def official_split(
    name: str,
    about: str,
    key: Key,
    folders: list[pathlib.Path],
    classes: dict[str, str],
    default: dict[str, str],
) -> dict[str, str]:
    """Key of an image → split, from the first kind of list that exists; images in no list are left
    out, which is logged.

    Args:
      name, about: the name and the layout of the set, for messages.
      key: maps the path of an image to its key.
      folders: where the lists may be.
      classes: key → class, for all images.
      default: the split without lists; if it is empty, a hash of the key decides.
    """
    split = _listed(about, key, folders, classes)
    if split is None:
        split = _numbered(key, folders) or default or _hashed(name, folders[-1], classes)
    if left := sorted(classes.keys() - split.keys()):
        logging.warning(
            "%s images of %s are in neither list of its split and are left out",
            summarise(left),
            name,
        )
    kept = {image: part for image, part in split.items() if image in classes}
    if not kept:
        raise UserError(
            f"the lists of the split of {name} in {folders[0]} name none of its images: {about}"
        )
    return kept


def _listed(
    about: str, key: Key, folders: list[pathlib.Path], classes: dict[str, str]
) -> dict[str, str] | None:
    """The split by a pair of LISTS, or None without one."""
    for names in LISTS:
        paths = [first_existing(folder / name for folder in folders) for name in names]
        if not any(paths):
            continue
        out = {}
        for name, path, split in zip(names, paths, (splits.TRAIN, splits.ITEMS)):
            if not path:
                raise UserError(
                    f"there is no {folders[0] / name} beside {next(filter(None, paths))}: a "
                    "split needs both"
                )
            if path.suffix == ".pickle":
                images = [key(item) for item in _unpickle_names(path)]
                if missing := sorted(set(images) - classes.keys()):
                    raise UserError(
                        f"{path} lists {summarise(missing)} that are not among the images: {about}"
                    )
            else:
                chosen = set(read_lines(path))
                images = [image for image, label in classes.items() if label in chosen]
            out |= dict.fromkeys(images, split)
        return out
    return None


def _numbered(key: Key, folders: list[pathlib.Path]) -> dict[str, str]:
    """The split of CUB's archive, or {} without it: images.txt numbers the images, and
    train_test_split.txt has a 1 for those of training.
    """
    names, flags = (
        first_existing(folder / name for folder in folders)
        for name in ("images.txt", "train_test_split.txt")
    )
    if not (names and flags):
        return {}
    try:
        training = {number: int(flag) for number, flag in map(str.split, read_lines(flags))}
        return {
            key(name): splits.TRAIN if training[number] else splits.ITEMS
            for number, name in map(str.split, read_lines(names))
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{names} and {flags} do not number the same images, with a line "
            '"<number> <value>" for each'
        ) from error


def _hashed(name: str, folder: pathlib.Path, keys: Iterable[str]) -> dict[str, str]:
    logging.warning(
        "%s has no list of an official split (train/filenames.pickle and test/filenames.pickle): "
        "%.0f %% of %s are held out, by a hash of the name",
        folder,
        100 * HELD_OUT,
        name,
    )
    split = splits.assign(((key, "") for key in keys), held_out_cells=0.0, held_out_items=HELD_OUT)
    return {key: part for (key, _), part in split.items()}


def _unpickle_names(path: pathlib.Path) -> list[str]:
    try:
        with path.open("rb") as file:
            names = Unpickler(file, encoding="latin1").load()  # strings of Python 2 and 3
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a pickled list of file names (found {error})") from error
    except Exception as error:  # damaged pickles raise nearly any exception
        raise UserError(
            f"{path} is not a pickled list of file names, or it is damaged ({type(error).__name__})"
        ) from error
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"{path} is not a pickled list of file names")
    return names
