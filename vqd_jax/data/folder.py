"""Any folder of captioned images: `img.png` beside `img.txt`, or one table (`metadata.jsonl`, `captions.csv`) for all.

`vqd_jax.prepare` packs it once; without that every image is decoded when training starts, so that a broken one is named
at the start.
"""

import csv
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator

from vqd_jax.data import splits
from vqd_jax.data.files import SUFFIXES, TOLERATED, Files, scan, some, threaded, tree
from vqd_jax.data.source import Record
from vqd_jax.errors import UserError

LAYOUTS = ("captions are read from a .txt file beside each image (one caption a line), or from metadata.jsonl "
           '({"file_name": …, "text": …}) or captions.csv (columns file_name,text) in the folder')
PREPARING = 0.5  # share of broken images that preparing leaves out, since it lists them


def folder(*, path: str, held_out_items: float = 0.1, held_out_cells: float = 0.0) -> Files:
    """A folder of images, searched recursively without hidden files; those without a caption are in `skipped`.

    The content of every file is read, so that the fingerprint sees any change.
    held_out_items, held_out_cells: shares, by a hash of the image's path (see `splits`); one style, "", has no cells.
    Raises: UserError naming the file when the folder, its tables or its captions are not as described.
    """
    if not path:
        raise UserError(f"Name the folder of your images: --config.folder.path=DIR; {LAYOUTS}.")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"The image folder {path} does not exist or is not a folder.")
    files = list(scan(root))
    if not files:
        raise UserError(f"There are no images in {path}; files ending in {' '.join(SUFFIXES)} are read.")
    captions = _captions(root, files)
    if not any(captions.values()):
        raise UserError(f"None of the {len(files)} images in {path} has a caption: {LAYOUTS}.")
    skipped = {file: "its caption is empty" if file in captions else "it has no caption" for file in files if not captions.get(file)}
    files = [file for file in files if file not in skipped]
    items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in files]
    split = splits.assign(((item, "") for item in items), held_out_cells=held_out_cells, held_out_items=held_out_items)
    records = [Record(item=item, group=item, captions=captions[file], split=split[item, ""]) for item, file in zip(items, files)]
    digests = threaded(lambda file: _digest(root / file), files, f"reading the images in {root}", "image")
    return tree("folder", root, records, files, dict(zip(files, digests)), skipped=skipped, tolerated=PREPARING)


def checked(source: Files) -> Files:
    """What training reads of a folder that was not prepared: every image is decoded once, before training could meet a broken one.

    Raises: UserError if an image has no caption, or when over 1 % cannot be decoded; fewer are left out, and logged.
    """
    remedy = "or run python -m vqd_jax.prepare, which leaves out and lists them"
    total = len(source.files) + len(source.skipped)
    if source.skipped:
        raise UserError(f"{some(source.skipped)} of the {total} images in {source.place} have no caption: caption or remove them, "
                        f"{remedy}.")
    reasons = threaded(source.fault, source.files, f"checking the images in {source.place}", "image")
    broken = {file: reason for file, reason in zip(source.files, reasons) if reason}
    if len(broken) > TOLERATED * total:
        raise UserError(f"{some(broken)} of the {total} images in {source.place} cannot be decoded; at most {TOLERATED:.0%} are "
                        f"skipped: mend or delete them, {remedy}.")
    if broken:
        logging.warning("%s of the %d images in %s cannot be decoded and are skipped", some(broken), total, source.place)
    return source.without(broken)


def _digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file; of one that cannot be read, which decoding will tell, nothing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _captions(root: pathlib.Path, files: list[str]) -> dict[str, tuple[str, ...]]:
    """File → captions, from the table if the folder has one and from text files otherwise; () where these are empty."""
    readers = {"metadata.jsonl": _jsonl, "captions.csv": _csv}
    tables = [(root / name, read) for name, read in readers.items() if (root / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{root} holds both metadata.jsonl and captions.csv: keep one of them.")
    found: dict[str, list[str]] = {}
    for table, read in tables:
        known = set(files)
        for number, name, texts in read(table):
            file = _inside(root, name, f"{table}, line {number}")
            if file not in known:
                raise UserError(f"{table}, line {number}: {name} is not an image file ({' '.join(SUFFIXES)}).")
            found.setdefault(file, []).extend(texts)
    if not tables:
        for file in files:
            text = (root / file).with_suffix(".txt")
            if text.exists():
                found[file] = [line for _, line in _lines(text)]
    clean = lambda texts: tuple(dict.fromkeys(text for line in texts if (text := " ".join(line.split()))))
    return {file: clean(texts) for file, texts in found.items()}


def _inside(root: pathlib.Path, name: str, where: str) -> str:
    """A table's file name as a path relative to the folder, which it must not leave."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: file_name {name!r} points outside the folder {root}.")
    if not (root / path).is_file():
        raise UserError(f"{where}: there is no file {name!r} in the folder {root}.")
    return path.as_posix()


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, of a UTF-8 file."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number} is not UTF-8 text (byte {error.start + 1} of the line).") from error


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}.") from error
        name, text = (entry.get("file_name"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        texts = [text] if isinstance(text, str) else text
        if not isinstance(name, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError(f'{path}, line {number}: expected {{"file_name": a string, "text": a string or a list of '
                            'strings}.')
        yield number, name, texts


def _csv(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path}: the first line must name the columns file_name and text, not "
                            f"{', '.join(reader.fieldnames or ['nothing'])}.")
        for row in reader:
            name, text = row["file_name"], row["text"]
            if name is None or text is None or None in row:
                if not any(value for value in row.values()):
                    continue
                raise UserError(f"{path}, line {reader.line_num} has not as many columns as the first (quote captions "
                                "with commas).")
            if name or text:
                yield reader.line_num, name, [text]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
