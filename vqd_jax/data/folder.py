"""Any folder of captioned images: `img.png` beside `img.txt`, or one table (`metadata.jsonl`,
`captions.csv`) for all.

A table that is not as described ends the run; an image whose own text file cannot be used is left
out with the reason.
"""

import csv
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.files import SUFFIXES, Files, map_threads, printable, scan, tree
from vqd_jax.data.source import Record

LAYOUTS = (
    "captions are read from a .txt file beside each image (one caption a line), or from "
    "metadata.jsonl "
    '({"file_name": …, "text": …}) or captions.csv (columns file_name,text) in the folder'
)
PREPARING = 0.5  # share of broken images that preparing leaves out, since it lists them
INVISIBLE = {"Cc", "Cf", "Zs"}  # Unicode's controls, marks of direction and joiners, spaces
Captions = dict[str, tuple[str, ...]]  # of each file; () where they are empty


def folder(*, path: str, held_out_items: float = 0.1, held_out_cells: float = 0.0) -> Files:
    """A folder of images, searched recursively without hidden files; those without a caption that
    can be used are in `skipped`.

    The content of every file is read, so that the fingerprint sees any change.
    held_out_items, held_out_cells: shares, by a hash of the image's path (see `splits`); one style,
    "", has no cells.
    Raises: UserError naming the file when the folder or its tables are not as described.
    """
    if not path:
        raise UserError(f"Name the folder of your images: --config.folder.path=DIR; {LAYOUTS}.")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"The image folder {path} does not exist or is not a folder.")
    files = list(scan(root))
    if not files:
        raise UserError(
            f"There are no images in {path}; files ending in {' '.join(SUFFIXES)} are read."
        )
    captions, unread = captions_of(root, files)
    why = lambda file: (
        unread.get(file) or ("its caption is empty" if file in captions else "it has no caption")
    )
    skipped = {file: why(file) for file in files if not captions.get(file)}
    if len(skipped) == len(files):
        raise UserError(
            f"None of the {len(files)} images in {path} has a caption{_first(unread)}: {LAYOUTS}."
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
    return tree(
        "folder",
        root,
        records,
        files,
        dict(zip(files, digests)),
        skipped=skipped,
        tolerated=PREPARING,
    )


def _digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file; of one that cannot be read, which decoding will tell, nothing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def captions_of(root: pathlib.Path, files: list[str]) -> tuple[Captions, dict[str, str]]:
    """The captions, from the table if the folder has one and from text files otherwise, and why
    some of these cannot be used.
    """
    readers = {"metadata.jsonl": _jsonl, "captions.csv": _csv}
    tables = [(root / name, read) for name, read in readers.items() if (root / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{root} holds both metadata.jsonl and captions.csv: keep one of them.")
    found: dict[str, list[str]] = {}
    unread: dict[str, str] = {}
    for table, read in tables:
        known = set(files)
        for number, name, texts in read(table):
            file = _inside(root, name, f"{table}, line {number}")
            if file not in known:
                raise UserError(
                    f"{table}, line {number}: {printable(name)} is not an image file "
                    f"({' '.join(SUFFIXES)})."
                )
            found.setdefault(file, []).extend(texts)
    if not tables:
        for file in files:
            if text := _beside(root / file):
                try:
                    found[file] = [line for _, line in _lines(text)]
                except UserError as error:
                    unread[file] = printable(
                        str(error).removeprefix(f"{text.parent}{os.sep}").removesuffix(".")
                    )
    return {file: clean(texts) for file, texts in found.items()}, unread


def _first(unread: dict[str, str]) -> str:
    return f", for example {next(iter(unread.values()))}" if unread else ""


def clean(texts: Iterable[str]) -> tuple[str, ...]:
    """The captions without repetitions and white space too much, and without those in which nothing
    can be seen.
    """
    texts = (" ".join(text.split()) for text in texts)
    return tuple(
        dict.fromkeys(
            text for text in texts if any(unicodedata.category(c) not in INVISIBLE for c in text)
        )
    )


def _beside(image: pathlib.Path) -> pathlib.Path | None:
    """The text file of an image."""
    return next(
        (text for suffix in (".txt", ".TXT") if os.path.isfile(text := image.with_suffix(suffix))),
        None,
    )


def _inside(root: pathlib.Path, name: str, where: str) -> str:
    """A table's file name as a path relative to the folder, which it must not leave."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: file_name '{printable(name)}' points outside the folder {root}.")
    if not os.path.isfile(root / path):
        raise UserError(f"{where}: there is no file '{printable(name)}' in the folder {root}.")
    return path.as_posix()


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, of a UTF-8 file."""
    if not path.is_file():
        raise UserError(f"{path} is no file.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if b"\0" in line:
            raise UserError(f"{path}, line {number} is not UTF-8 text (it has a zero byte).")
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8 text (byte {error.start + 1} of the line)."
            ) from error


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}.") from error
        name, text = (
            (entry.get("file_name"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        )
        texts = [text] if isinstance(text, str) else text
        if (
            not isinstance(name, str)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise UserError(
                f'{path}, line {number}: expected {{"file_name": a string, "text": a string or a list of '
                "strings}."
            )
        yield number, name, texts


def _csv(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: the first line must name the columns file_name and text, not "
                f"{printable(', '.join(reader.fieldnames or ['nothing']))}."
            )
        for row in reader:
            name, text = row["file_name"], row["text"]
            if name is None or text is None or None in row:
                if not any(value for value in row.values()):
                    continue
                raise UserError(
                    f"{path}, line {reader.line_num} has not as many columns as the first (quote "
                    "captions "
                    "with commas)."
                )
            if name or text:
                yield reader.line_num, name, [text]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}.") from error
