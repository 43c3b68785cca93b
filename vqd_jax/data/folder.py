"""Any folder of captioned images: `img.png` beside `img.txt`, or one table (`metadata.jsonl`, `captions.csv`) for all.

Every image is decoded once when the folder is opened, so that a broken file is named at the start and never met in
training.
"""

import concurrent.futures
import csv
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vqd_jax.data import splits
from vqd_jax.data.source import Record, fingerprint
from vqd_jax.errors import UserError
from vqd_jax.progress import track

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LAYOUTS = ("captions are read from a .txt file beside each image (one caption a line), or from metadata.jsonl "
           '({"file_name": …, "text": …}) or captions.csv (columns file_name,text) in the folder')
TOLERATED = 0.01  # share of unreadable images that is skipped with a warning


class Folder:
    """A folder of images with captions, searched recursively without hidden files; every image needs a caption.

    Args:
      path: the folder.
      held_out_items, held_out_cells: shares, by a hash of the image's path (see `splits`); one style, "", has no cells.
    Raises: UserError naming the file when the folder, its tables or its captions are not as described, or when over 1 %
      of the images cannot be decoded; fewer are skipped, listed in `skipped` and logged.
    """

    def __init__(self, *, path: str, held_out_items: float = 0.1, held_out_cells: float = 0.0):
        if not path:
            raise UserError(f"Name the folder of your images: --config.folder.path=DIR; {LAYOUTS}.")
        self.root = pathlib.Path(path).expanduser()
        if not self.root.is_dir():
            raise UserError(f"The image folder {path} does not exist or is not a folder.")
        files = sorted(_images(self.root))
        if not files:
            raise UserError(f"There are no images in {path}; files ending in {' '.join(SUFFIXES)} are read.")
        captions = _captions(self.root, files)
        if not captions:
            raise UserError(f"None of the {len(files)} images in {path} has a caption: {LAYOUTS}.")
        if bare := [file for file in files if file not in captions]:
            raise UserError(f"{len(bare)} of the {len(files)} images in {path} have no caption ({_shown(bare)}): "
                            "caption or remove them.")
        digests, self.skipped = _verify(self.root, sorted(captions))
        self._files = sorted(digests)
        items = [pathlib.PurePosixPath(file).with_suffix("").as_posix() for file in self._files]
        split = splits.assign(((item, "") for item in items),
                              held_out_cells=held_out_cells, held_out_items=held_out_items)
        self.records = [Record(item=item, group=item, captions=captions[file], split=split[item, ""])
                        for item, file in zip(items, self._files)]
        self.fingerprint = fingerprint("folder", [digests[file] for file in self._files], records=self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.records[i].example(decode((self.root / self._files[i]).read_bytes()))


def decode(content: bytes) -> np.ndarray:
    """Bytes of any image file that Pillow reads → uint8 (H, W, 3): upright, first frame, on white where transparent."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=-1)
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """16-bit grey by its upper byte; other depths are taken as they are up to 255, and as 16-bit beyond."""
    if pixels.dtype.itemsize > 2 and pixels.max(initial=0) <= 255:
        return pixels.clip(0, 255).astype(np.uint8)
    return (pixels.clip(0, 65535).astype(np.int64) >> 8).astype(np.uint8)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _images(root: pathlib.Path) -> Iterator[str]:
    """Relative POSIX paths of the images, hidden files and folders left out."""
    for folder, children, names in os.walk(root):
        children[:] = [child for child in children if not child.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (pathlib.Path(folder) / name).relative_to(root).as_posix()


def _captions(root: pathlib.Path, files: list[str]) -> dict[str, tuple[str, ...]]:
    """File → captions, from the table if the folder has one and from text files otherwise."""
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
    return {file: cleaned for file, texts in found.items() if (cleaned := clean(texts))}


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


def _verify(root: pathlib.Path, files: list[str]) -> tuple[dict[str, str], list[str]]:
    """(file → SHA-256 of its bytes) for the images that decode, and the names of the others."""
    def digest(file: str) -> str | None:
        try:
            content = (root / file).read_bytes()
            decode(content)
            return hashlib.sha256(content).hexdigest()
        except Exception:  # Pillow's decoders raise nearly anything on broken bytes
            return None

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(track(pool.map(digest, files), len(files), f"checking the images in {root}", "image"))
    skipped = [file for file, value in zip(files, found) if value is None]
    if skipped:
        if len(skipped) > TOLERATED * len(files):
            raise UserError(f"{len(skipped)} of the {len(files)} images in {root} cannot be decoded "
                            f"({_shown(skipped)}); at most {TOLERATED:.0%} are skipped: mend or delete them.")
        logging.warning("%d of the %d images in %s cannot be decoded and are skipped: %s",
                        len(skipped), len(files), root, _shown(skipped))
    return {file: value for file, value in zip(files, found) if value is not None}, skipped
