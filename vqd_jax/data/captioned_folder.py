"""A folder of images with captions: a text file beside each image, or tables (`metadata.jsonl`,
`metadata.csv` or `captions.csv`) in the folders. Or without captions, for models of classes or of
nothing.

A malformed table ends the run; an image without a usable caption is left out with the reason, and
so is a row of a table without its image.
"""

import codecs
import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from vqd_jax.core.errors import UserError, printable
from vqd_jax.data import splits
from vqd_jax.data.found_instead import found_instead
from vqd_jax.data.image_files import (
    SUFFIXES,
    ImageFiles,
    existing_folder,
    folder_source,
    list_images,
    map_threads,
    summarise,
)
from vqd_jax.data.source import Record
from vqd_jax.data.text.captions import visible

TEXTS = (".txt", ".caption")  # of a caption's file, after the image's name or its stem
TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
IMAGE_KEYS = ("file_name", "image", "file", "filename", "path")  # of a table's columns
TEXT_KEYS = ("text", "caption", "prompt", "captions", "description")
LAYOUTS = (
    "captions are read from a .txt or .caption file beside each image (one caption a line), or "
    f"from a table {', '.join(TABLES[:-1])} or {TABLES[-1]} with the columns file_name and text"
)
UNREAD = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".arrow", ".tar")  # other tables
TOLERATED = 0.5  # the share of broken images that `vqd prepare` leaves out and lists
MARKDOWN = re.compile(r"#{1,6} |[-*+] |\d+\. |> |```|\|")
Captions = dict[str, tuple[str, ...]]  # file → captions, () if all are empty


class _OtherTable(UserError):
    """A table without columns of images and captions."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How captions lie in a folder.

    Attributes:
      caption: "lines" (each line of a text file is a caption) or "file" (all of it is one).
      image_key, text_key: the columns of tables; "" finds one of IMAGE_KEYS and of TEXT_KEYS.
    """

    caption: str = "lines"
    image_key: str = ""
    text_key: str = ""

    def __post_init__(self):
        if self.caption not in ("lines", "file"):
            raise UserError(f"folder.caption must be lines or file, got {self.caption!r}")

    def column(self, names: Iterable[str], which: str) -> str | None:
        """The name of the column of images or of texts among these."""
        key = self.image_key if which == "image" else self.text_key
        known = (key,) if key else IMAGE_KEYS if which == "image" else TEXT_KEYS
        names = [*names]
        return next((name for name in known if name in names), None)


def captioned_folder(
    *,
    path: str,
    held_out_items: float = 0.1,
    held_out_cells: float = 0.0,
    caption: str = "lines",
    image_key: str = "",
    text_key: str = "",
    condition: str = "text",
) -> ImageFiles:
    """A folder of images, searched recursively without hidden files; those without a usable caption
    are in `skipped`.

    The fingerprint covers the content of every file.
    held_out_items, held_out_cells: shares, by a hash of the image's path (see `splits`); with the
    single style "", no emoji-style pair is held out.
    caption, image_key, text_key: see `Layout`.
    condition: "text" needs captions; "class" takes the first folder on the way to an image for its
    class, in alphabetical order; "none" takes all images.
    Raises: UserError naming the file if the folder or its tables are malformed.
    """
    root = existing_folder("folder", path, LAYOUTS)
    files = list(list_images(root))
    if not files:
        raise UserError(
            f"there are no images in {path}{found_instead(root, ())}; files ending in "
            f"{' '.join(SUFFIXES)} are read"
        )
    labels, skipped = dict.fromkeys(files, -1), {}
    if condition == "text":
        captions, skipped = _with_captions(root, files, Layout(caption, image_key, text_key))
    elif condition == "class":
        captions, labels = _with_classes(root, files)
    else:
        captions = dict.fromkeys(files, ("",))
    files = [file for file in files if file not in skipped]
    items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in files]
    split = splits.assign(
        ((item, "") for item in items), held_out_cells=held_out_cells, held_out_items=held_out_items
    )
    records = [
        Record(
            item=item,
            group=item,
            captions=captions[file],
            split=split[item, ""],
            label=labels[file],
        )
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


def _with_captions(
    root: pathlib.Path, files: list[str], layout: Layout
) -> tuple[Captions, dict[str, str]]:
    """The captions, and why files are left out. UserError if no image has a caption."""
    captions, unread = captions_of(root, files, layout)
    skipped = {name: why for name, why in unread.items() if not captions.get(name)}
    for file in files:
        if not captions.get(file) and file not in skipped:
            skipped[file] = "its caption is empty" if file in captions else "it has no caption"
    if not any(captions.get(file) for file in files):
        name = next(iter(unread), "")
        example = f", for example {printable(name)}: {unread[name]}" if name else ""
        there = sorted(p.name for p in root.iterdir() if p.suffix.lower() in UNREAD)
        there = [name for name in there if name not in TABLES]
        lies = f"; there is {printable(there[0])}, which is not one of them" if there else ""
        if lies and there[0].endswith(".json"):
            lies += (
                ": write its entries to metadata.jsonl, an object with file_name and text a line"
            )
        raise UserError(
            f"none of the {len(files)} images in {root} has a caption{example}: {LAYOUTS}{lies}"
        )
    return captions, skipped


def _with_classes(root: pathlib.Path, files: list[str]) -> tuple[Captions, dict[str, int]]:
    """The names of the classes as captions, and their numbers."""
    if outside := [file for file in files if "/" not in file]:
        raise UserError(
            f"{summarise(outside)} of the images in {root} are in no folder of a class: put the "
            "images of each class into a folder"
        )
    names = sorted({file.split("/")[0] for file in files})
    numbers = {name: i for i, name in enumerate(names)}
    return (
        {file: (file.split("/")[0],) for file in files},
        {file: numbers[file.split("/")[0]] for file in files},
    )


def _digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file, or "" if it cannot be read, which decoding reports."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def captions_of(
    root: pathlib.Path, files: list[str], layout: Layout = Layout()
) -> tuple[Captions, dict[str, str]]:
    """The captions of the files, from the tables in their folders or from text files, and why some
    files have none: images whose text is unusable, and images of tables that are not there.
    """
    found: dict[str, list[str]] = {}
    unread: dict[str, str] = {}
    known = set(files)
    tables, texts = _tables(root, files), _texts_beside(root, files)
    chosen = layout.image_key or layout.text_key
    for table in [*tables] if texts and not chosen else ():
        try:
            next(iter(_READERS[table.suffix](table, layout)), None)
        except _OtherTable as error:
            tables.remove(table)
            logging.warning("%s; it is ignored, as there are text files beside images", error)
    for table in tables:
        for number, name, captions in _READERS[table.suffix](table, layout):
            where = f"{table}, line {number}"
            if not name:
                raise UserError(f"{where} names no image")
            file = _inside(root, table.parent, name, where)
            if file in known:
                found.setdefault(file, []).extend(captions)
            elif os.path.isfile(root / file):
                raise UserError(
                    f"{where}: {printable(name)} is not an image file ({' '.join(SUFFIXES)})"
                )
            else:
                unread[file] = f"it is not there, and line {number} of {table.name} names it"
    if not tables:
        paragraphs = []
        for file, text in texts.items():
            try:
                lines = [line for _, line in _lines(text)]
            except UserError as error:
                unread[file] = printable(str(error).removeprefix(f"{text.parent}{os.sep}"))
                continue
            if layout.caption == "file":
                lines = [" ".join(lines)]
            elif _is_prose(lines):
                paragraphs.append(file)
            found[file] = lines
        if paragraphs:
            logging.warning(
                "the texts of %s images in %s look like paragraphs or Markdown, and each line is "
                "read as a caption: folder.caption=file takes each text for one caption",
                summarise(paragraphs),
                root,
            )
    return {file: visible(texts) for file, texts in found.items()}, unread


def _tables(root: pathlib.Path, files: list[str]) -> list[pathlib.Path]:
    """The tables in the folders of the images and above them. UserError for two in one folder."""
    folders = {parent for file in files for parent in pathlib.PurePosixPath(file).parents}
    out = []
    for folder in sorted(folders):
        there = [path for name in TABLES if (path := root / folder / name).exists()]
        if len(there) > 1:
            raise UserError(
                f"{there[0].parent} holds both {there[0].name} and {there[1].name}: keep one of "
                "them"
            )
        out += there
    return out


def _texts_beside(root: pathlib.Path, files: list[str]) -> dict[str, pathlib.Path]:
    """The text file of each image that has one: `a.txt`, `a.caption` or `a.png.txt` for `a.png`,
    whatever the Unicode form and the case of the names. Another case than the image's is the last
    choice, and never the text of another image.
    """
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, []).append(name)
    out = {}
    for folder, names in folders.items():
        exact = set(os.listdir(root / folder))
        wanted = {
            name: [base + ending for base in (name.rpartition(".")[0], name) for ending in TEXTS]
            for name in names
        }
        others = sorted(exact.difference(*wanted.values()))
        alike = [(form, {form(other): other for other in others}) for form in (_plain, _folded)]
        for name in names:
            texts = [text for text in wanted[name] if text in exact]
            for form, there in alike:
                texts += [there[key] for text in wanted[name] if (key := form(text)) in there]
            texts = [text for text in texts if os.path.isfile(root / folder / text)]
            if texts:
                out[f"{folder}/{name}".lstrip("/")] = root / folder / texts[0]
    return out


def _plain(name: str) -> str:
    """A file name in one Unicode form and with its ending in lower case."""
    stem, dot, ending = unicodedata.normalize("NFC", name).rpartition(".")
    return stem + dot + ending.lower()


def _folded(name: str) -> str:
    """A file name in one Unicode form and without case."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_prose(lines: list[str]) -> bool:
    """Whether a text looks like paragraphs or Markdown rather than a caption on each line."""
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return len(lines) > 1 and ("" in lines or any(MARKDOWN.match(line) for line in lines))


def _inside(root: pathlib.Path, folder: pathlib.Path, name: str, where: str) -> str:
    """A file name in a table of the folder, relative to the root. UserError if it leaves that."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: file_name '{printable(name)}' points outside the folder {root}")
    return (folder / path).relative_to(root).as_posix()


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, or of one in UTF-16 with its mark, numbered from 1."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with contextlib.suppress(UnicodeDecodeError):  # else it is told as UTF-8 that it is not
            content = content.decode("utf-16").encode()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if b"\0" in line:
            raise UserError(f"{path}, line {number} is not UTF-8 text (it has a zero byte)")
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8 text (byte {error.start + 1} of the line)"
            ) from error


def _jsonl(path: pathlib.Path, layout: Layout) -> Iterator[tuple[int, str, list[str]]]:
    columns = None
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {number} is not an object with an image and a text")
        image, text = columns = columns or _columns(path, number, entry, layout)
        name, texts = entry.get(image), entry.get(text)
        texts = [texts] if isinstance(texts, str) or texts is None else texts
        if not isinstance(name, str) or not isinstance(texts, list):
            raise UserError(
                f'{path}, line {number}: expected {{"{image}": a string, "{text}": a string or a '
                "list of strings}"
            )
        if not all(isinstance(t, str) or t is None for t in texts):
            raise UserError(f"{path}, line {number}: {text} has an entry that is no string")
        yield number, name, [t for t in texts if t is not None]


def _csv(path: pathlib.Path, layout: Layout) -> Iterator[tuple[int, str, list[str]]]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        image, text = _columns(path, 1, reader.fieldnames or (), layout)
        for row in reader:
            if None in row or None in row.values():
                if not any(value for value in row.values()):
                    continue
                raise UserError(
                    f"{path}, line {reader.line_num} has not as many columns as the first; "
                    "captions with commas need quotes"
                )
            if row[image] or row[text]:
                yield reader.line_num, row[image], [row[text]]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from error


def _columns(
    path: pathlib.Path, line: int, names: Iterable[str], layout: Layout
) -> tuple[str, str]:
    """The columns of images and of texts. UserError if there are none."""
    names = [*names]
    image, text = layout.column(names, "image"), layout.column(names, "text")
    if image is None or text is None:
        raise _OtherTable(
            f"{path}, line {line} has no column of {'images' if image is None else 'captions'}, "
            f"only {printable(', '.join(names) or 'nothing')}: name them file_name and text, or "
            "set folder.image_key and folder.text_key"
        )
    return image, text


_READERS = {".jsonl": _jsonl, ".csv": _csv}
