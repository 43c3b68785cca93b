"""The sets of the paper without captions, as they are distributed: ImageNet with its classes, and
the faces of FFHQ.
"""

import pathlib

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.files import Files, open_folder, read_list, scan, summarise, tree
from vqd_jax.data.source import Record

IMAGENET = (
    "ImageNet is {train,val}/<synset>/<image>.JPEG, from image-net.org, where the images of val "
    "have to be sorted into "
    "folders of their synsets first"
)
FFHQ = "FFHQ is a folder of images, in sub-folders or not, from github.com/NVlabs/ffhq-dataset"
FFHQ_TRAINING = 60_000  # the first ones, as its authors say
HELD_OUT = 0.1  # share, by a hash of the name, of files that are not numbered as theirs


def imagenet(*, path: str) -> Files:
    """ImageNet: the label is the place of the synset in alphabetical order, the caption its
    identifier ("n01440764").

    Where the folder has lists ILSVRC2012_name_{train,val}.txt, with a line <synset>/<image>.JPEG
    each, only the images in them are taken.
    """
    root = open_folder("imagenet", path, IMAGENET)
    records, files, sizes, labels = [], [], {}, {}
    for part, split in (("train", splits.TRAIN), ("val", splits.ITEMS)):
        if not (root / part).is_dir():
            raise UserError(f"There is no folder {root / part}: {IMAGENET}.")
        found = scan(root / part)
        if outside := [name for name in found if name.count("/") != 1]:
            raise UserError(
                f"{summarise(outside)} of the images in {root / part} are not in a folder of their "
                f"synset: {IMAGENET}."
            )
        if not found:
            raise UserError(f"There are no images in {root / part}: {IMAGENET}.")
        synsets = sorted({name.split("/")[0] for name in found})
        labels = labels or {synset: i for i, synset in enumerate(synsets)}
        if unknown := [synset for synset in synsets if synset not in labels]:
            raise UserError(
                f"{root / part} has {summarise(unknown)} synsets that {root / 'train'} has not: "
                f"{IMAGENET}."
            )
        captions = {synset: (synset,) for synset in synsets}
        for name in _listed(root / f"ILSVRC2012_name_{part}.txt", root / part, found):
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
    return tree("imagenet", root, records, files, sizes)


def ffhq(*, path: str) -> Files:
    """FFHQ, without captions: the images below the folder, or only those in images1024x1024/ where
    there is such a folder.

    Where all files are numbered, those from 60000 on are "held_out_items", as its authors
    recommend; else a hash of the name decides.
    """
    root = open_folder("ffhq", path, FFHQ)
    root = root / "images1024x1024" if (root / "images1024x1024").is_dir() else root
    sizes = scan(root)
    if not sizes:
        raise UserError(f"There are no images in {root}: {FFHQ}.")
    items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in sizes]
    names = [item.split("/")[-1] for item in items]
    numbered = all(name.isdecimal() for name in names)
    held_out = lambda name, item: (
        int(name) >= FFHQ_TRAINING if numbered else splits.unit("item", item) < HELD_OUT
    )
    records = [
        Record(
            item=item, captions=("",), split=splits.ITEMS if held_out(name, item) else splits.TRAIN
        )
        for name, item in zip(names, items)
    ]
    return tree("ffhq", root, records, list(sizes), sizes)


def _listed(table: pathlib.Path, images: pathlib.Path, found: dict[str, int]) -> list[str]:
    """The images that the list names, which may begin its lines with the folder; all of them if
    there is no list.
    """
    if not table.is_file():
        return list(found)
    lines = [
        line.replace("\\", "/").removeprefix("./").removeprefix(f"{images.name}/")
        for line in read_list(table)
    ]
    names = list(dict.fromkeys(filter(None, lines)))
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{table} lists {summarise(missing)} that are not in {images}: {IMAGENET}.")
    if not names:
        raise UserError(f"There are no lines in {table}: a line is <synset>/<image>.JPEG.")
    return names
