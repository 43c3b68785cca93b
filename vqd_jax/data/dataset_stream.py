"""Opens a data set of Hugging Face's `datasets` as a stream of rows: a set of the hub, or local
files of a format that the library reads. It keeps no copy of them.
"""

import contextlib
import dataclasses
import fnmatch
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from vqd_jax.core.errors import UserError, printable
from vqd_jax.core.extras import import_extra
from vqd_jax.core.text_files import shown
from vqd_jax.data.dataset_columns import Columns, find_columns
from vqd_jax.data.image_bytes import reason
from vqd_jax.data.image_files import summarise

TAR_BLOCK = 512  # bytes; readers take a file that ends within a header for a whole one
ON_THE_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME
ABOUT = (
    "a data set is OWNER/NAME on the Hugging Face hub, or a file or folder of parquet files or of "
    "webdataset shards (.tar)"
)

State = dict[str, Any]  # a place in a stream, as JSON
Row = tuple[int, dict[str, Any], State]  # its number, its values, and the place behind it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows and columns of a data set.

    Args:
      path: a data set of the hub, OWNER/NAME, or a local file or folder.
      files: a pattern of file names in it; "" takes those of the split.
      name: its subset (configuration); "" if there is only one.
      split: its split.
      image, caption, condition: see `find_columns`.
      revision: the branch, tag or commit of a set of the hub; "" is the default branch.
      held_out_items: the share of the images held out from the split, by a hash of their bytes.
    Raises: UserError if the path is neither.
    """

    path: str
    files: str = ""
    name: str = ""
    split: str = "train"
    image: str = ""
    caption: str = ""
    revision: str = ""
    held_out_items: float = 0.1
    condition: str = "text"

    def __post_init__(self):
        if not self.path:
            raise UserError(f"datasets.path is not set, pass --config.datasets.path=PATH: {ABOUT}")
        if not self.local.exists() and not ON_THE_HUB.fullmatch(self.path):
            raise UserError(f"there is no file or folder {printable(self.path)}: {ABOUT}")
        if self.local.is_file() and self.files:
            raise UserError(f"datasets.files names files in a folder, but {self.path} is a file")

    @property
    def local(self) -> pathlib.Path:
        """The local file or folder, which does not exist for a set of the hub."""
        return pathlib.Path(self.path).expanduser().absolute()

    def identity(self) -> tuple[Any, ...]:
        """What decides the rows: of local files, their names, sizes and times, but not their
        folder.
        """
        rest = dataclasses.astuple(dataclasses.replace(self, held_out_items=0.0))[1:]
        if not self.local.exists():
            return self.path, *rest
        root, below = self.local, self.local.rglob("*")
        if root.is_file():
            root, below = root.parent, iter([root])
        files = {file.relative_to(root).as_posix(): file for file in below if file.is_file()}
        # the * of fnmatch matches slashes, too: a file too many does no harm here
        there = [
            (name, file.stat().st_size, file.stat().st_mtime_ns)
            for name, file in sorted(files.items())
            if fnmatch.fnmatchcase(f"/{name}", f"*{self.files}") and "/." not in f"/{name}"
        ]
        if not there:
            named = f" named {printable(self.files)}" if self.files else ""
            raise UserError(f"there are no files{named} in {self.path}: {ABOUT}")
        if cut := [name for name, size, _ in there if size % TAR_BLOCK and _is_tar(files[name])]:
            raise UserError(
                f"{summarise(cut)} of the shards in {self.path} are incomplete: the size of a .tar "
                f"file is a multiple of {TAR_BLOCK} bytes"
            )
        return there, *rest

    def commit(self) -> str:
        """The newest commit of a set of the hub; "" for local files."""
        if self.local.exists():
            return ""
        hub = _library("huggingface_hub")
        with self._readable():
            return hub.HfApi().dataset_info(self.path, revision=self.revision or None).sha

    def open(self, commit: str, state: State | None) -> tuple[Any, Columns]:
        """The `datasets.IterableDataset` of this commit from a place on (None is the first row),
        with undecoded images, and its columns.
        """
        path, files = self.path, self.files
        if self.local.exists():
            path = str(self.local)
        if self.local.is_file():
            path, files = str(self.local.parent), self.local.name
        library = _library("datasets")
        with self._readable(expected=f": {ABOUT}"):
            builder = library.load_dataset_builder(
                path, self.name or None, data_files=files or None, revision=commit or None
            )
            streams = builder.as_streaming_dataset()
        if self.split not in streams:
            raise UserError(
                f"{self.path} has no split {printable(self.split)}, only {', '.join(streams)}: set "
                "datasets.split"
            )
        stream = streams[self.split]
        if not stream.features:
            raise UserError(f"{self.path} cannot be read, its columns have no types: {ABOUT}")
        columns = find_columns(
            self.path,
            stream.features,
            image=self.image,
            caption=self.caption,
            condition=self.condition,
        )
        used = {names[0] for names in (columns.image, columns.text) if names}
        stream = stream.decode(False).select_columns(sorted(used))
        if state:
            stream.load_state_dict(state)
        return stream, columns

    def rows(self, stream: Any, start: int) -> Iterator[Row]:
        """The rows of an opened stream, numbered from `start`. UserError if they cannot be read."""
        numbered, number = enumerate(stream, start), start - 1
        while True:
            with self._readable(f" behind row {number}" if number >= 0 else ""):
                found = next(numbered, None)
            if found is None:
                return
            number, row = found
            yield number, row, stream.state_dict()

    def content(self, image: Any) -> bytes:
        """The bytes of an image in a row. ValueError if it has none, or names a file outside of the
        data set; UserError if a file of the data set cannot be read, as without a network.
        """
        if isinstance(image, bytes):
            return image
        if not image:
            raise ValueError("it has no image")
        if image["bytes"] is not None:
            return image["bytes"]
        file = image.get("path") or ""
        inside = (f"{self.local}{os.sep}", f"hf://datasets/{self.path}@")
        if not file.startswith(inside) or ".." in file:
            raise ValueError(f"the data set does not contain its image {shown(file)}")
        try:
            with _library("fsspec").open(file, "rb") as opened:
                return opened.read()
        except Exception as error:  # of the hub's client, too
            raise UserError(
                f"the image {printable(file)} cannot be read "
                f"({printable(f'{type(error).__name__}: {reason(error)}')})"
            ) from error

    @contextlib.contextmanager
    def _readable(self, where: str = "", expected: str = "") -> Iterator[None]:
        """Turns errors of `datasets` and of the hub's client, of many kinds, into a UserError."""
        with _logged_errors() as logged:
            try:
                yield
            except Exception as error:
                why = [f"{type(error).__name__}: {reason(error)}", *logged][-1]
                raise UserError(
                    f"the data set {self.path} cannot be read{where} ({printable(why)}){expected}"
                ) from error


def _is_tar(file: pathlib.Path) -> bool:
    """Whether it is named as a tar file and begins as one that is not compressed."""
    if file.suffix != ".tar":
        return False
    with file.open("rb") as opened:
        return opened.read(TAR_BLOCK)[257:262] == b"ustar"


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Takes what `datasets` logs, such as an error that names a file before it is raised without
    that; warnings are dropped.
    """
    texts: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("datasets")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield texts
    finally:
        logger.handlers, logger.propagate = before


def _library(module: str) -> ModuleType:
    return import_extra(module, "datasets", "data.source=datasets")
