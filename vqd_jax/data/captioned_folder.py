"""A folder of images with captions: `img.png` beside `img.txt`, or a table (`metadata.jsonl` or
`captions.csv`) for all images.

A malformed table ends the run; an image whose own text file is unusable is left out with the
reason.
"""

import csv
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.image_files import (
    SUFFIXES,
    ImageFiles,
    existing_folder,
    folder_source,
    list_images,
    map_threads,
    printable,
)
from vqd_jax.data.source import Record
from vqd_jax.data.text.captions import visible

LAYOUTS = (
    "captions are read from a .txt file beside each image (one caption a line), or from "
    'metadata.jsonl ({"file_name": …, "text": …}) or captions.csv (columns file_name,text) in the '
    "folder"
)
TOLERATED = 0.5  # the share of broken images that `vqd prepare` leaves out and lists
Captions = dict[str, tuple[str, ...]]  # file → captions, () if all are empty


def captioned_folder(
    *, path: str, held_out_items: float = 0.1, held_out_cells: float = 0.0
) -> ImageFiles:
    """A folder of images, searched recursively without hidden files; those without a usable caption
    are in `skipped`.

    The fingerprint covers the content of every file.
    held_out_items, held_out_cells: shares, by a hash of the image's path (see `splits`); with the
    single style "", no emoji-style pair is held out.
    Raises: UserError naming the file if the folder or its tables are malformed.
    """
    root = existing_folder("folder", path, LAYOUTS)
    files = list(list_images(root))
    if not files:
        raise UserError(
            f"there are no images in {path}; files ending in {' '.join(SUFFIXES)} are read"
        )
    captions, unread = captions_of(root, files)
    skipped = {}
    for file in files:
        if not captions.get(file):
            missing = "its caption is empty" if file in captions else "it has no caption"
            skipped[file] = unread.get(file, missing)
    if len(skipped) == len(files):
        example = f", for example {next(iter(unread.values()))}" if unread else ""
        raise UserError(
            f"none of the {len(files)} images in {path} has a caption{example}: {LAYOUTS}"
        )
    files = [file for file in files if file not in skipped]
    items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in files]
    split = splits.assign(
        ((item, "") for item in items), held_out_cells=held_out_cells, held_out_items=held_out_items
    )
    records = [
        Record(item=item, group=item, captions=captions[file], split=split[item, ""])
        for item, file in zip(items, files)
    ]
    digests = map_threads(
        lambda file: _digest(root / file), files, f"reading the images in {root}", "image"
    )
    return folder_source(
        "folder",
        root,
        records,
        files,
        dict(zip(files, digests)),
        skipped=skipped,
        tolerated=TOLERATED,
    )


def _digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file, or "" if it cannot be read, which decoding reports."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def captions_of(root: pathlib.Path, files: list[str]) -> tuple[Captions, dict[str, str]]:
    """The captions of the files, from the table of the folder or from text files, and the reasons
    why some text files are unusable.
    """
    readers = {"metadata.jsonl": _jsonl, "captions.csv": _csv}
    tables = [(root / name, read) for name, read in readers.items() if (root / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{root} holds both metadata.jsonl and captions.csv: keep one of them")
    found: dict[str, list[str]] = {}
    unread: dict[str, str] = {}
    for table, read in tables:
        known = set(files)
        for number, name, texts in read(table):
            file = _inside(root, name, f"{table}, line {number}")
            if file not in known:
                raise UserError(
                    f"{table}, line {number}: {printable(name)} is not an image file "
                    f"({' '.join(SUFFIXES)})"
                )
            found.setdefault(file, []).extend(texts)
    if not tables:
        for file in files:
            if text := _beside(root / file):
                try:
                    found[file] = [line for _, line in _lines(text)]
                except UserError as error:
                    unread[file] = printable(str(error).removeprefix(f"{text.parent}{os.sep}"))
    return {file: visible(texts) for file, texts in found.items()}, unread


def _beside(image: pathlib.Path) -> pathlib.Path | None:
    """The text file beside an image, or None."""
    return next(
        (text for suffix in (".txt", ".TXT") if os.path.isfile(text := image.with_suffix(suffix))),
        None,
    )


def _inside(root: pathlib.Path, name: str, where: str) -> str:
    """A file name of a table as a relative path; UserError if it is not a file of the folder."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: file_name '{printable(name)}' points outside the folder {root}")
    if not os.path.isfile(root / path):
        raise UserError(f"{where}: there is no file '{printable(name)}' in the folder {root}")
    return path.as_posix()


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if b"\0" in line:
            raise UserError(f"{path}, line {number} is not UTF-8 text (it has a zero byte)")
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8 text (byte {error.start + 1} of the line)"
            ) from error


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        entry = entry if isinstance(entry, dict) else {}
        name, text = entry.get("file_name"), entry.get("text")
        texts = [text] if isinstance(text, str) else text
        if (
            not isinstance(name, str)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise UserError(
                f'{path}, line {number}: expected {{"file_name": a string, "text": a string or a '
                "list of strings}"
            )
        yield number, name, texts


def _csv(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: the first line must name the columns file_name and text, not "
                f"{printable(', '.join(reader.fieldnames or ['nothing']))}"
            )
        for row in reader:
            name, text = row["file_name"], row["text"]
            if name is None or text is None or None in row:
                if not any(value for value in row.values()):
                    continue
                raise UserError(
                    f"{path}, line {reader.line_num} has not as many columns as the first; "
                    "captions with commas need quotes"
                )
            if name or text:
                yield reader.line_num, name, [text]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from error
