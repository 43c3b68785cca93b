"""Which columns of a data set of Hugging Face's `datasets` hold the images and the captions, and
their values in a row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from vqd_jax.core.errors import UserError, one_line
from vqd_jax.data.captioned_folder import TEXT_KEYS
from vqd_jax.data.text.captions import visible

CAPTIONS = (*TEXT_KEYS, "txt")  # of webdataset shards
IMAGE = "PIL.Image.Image"  # the dtype of `datasets.Image`
BYTES = ("binary", "large_binary")
TEXT = ("string", "large_string", "string_view")
WANTED = {"image": "of images", "text": "of captions", "class": "of classes (ClassLabel)"}
LONGEST_LIST = 1000  # characters of the columns in a message

Features = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a row has its image and its captions.

    Attributes:
      image, text: names of a column and of the fields in it; no text where no captions are wanted.
      classes: the names of the classes, if the text column holds their numbers.
    """

    image: tuple[str, ...]
    text: tuple[str, ...]
    classes: tuple[str, ...]

    def image_in(self, row: Mapping[str, Any]) -> Any:
        """Bytes, {"bytes": bytes or None, "path": …}, or None."""
        return _value(row, self.image)

    def captions_in(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
        """The captions, () if there are none, and the number of the class, -1 without classes."""
        if not self.text:
            return ("",), -1
        value = _value(row, self.text)
        if self.classes:
            known = value is not None and 0 <= value < len(self.classes)
            return ((self.classes[value],), value) if known else ((), -1)
        texts = [value] if isinstance(value, str) else value or []
        return visible(text for text in texts if isinstance(text, str)), -1


def find_columns(
    where: str, features: Features, *, image: str, caption: str, condition: str
) -> Columns:
    """The columns with these names or, for "", the only ones that can be meant.

    Args:
      where: the data set, for messages.
      features: `datasets.Features`; fields of a struct are named STRUCT.FIELD.
      condition: "text" needs captions, "class" classes; "none" needs neither.
    Raises: UserError, which lists the columns.
    """
    columns = {".".join(path): (path, feature) for path, feature in _flat(features)}

    def fail(problem: str, key: str) -> NoReturn:
        listed = ", ".join(f"{name} ({_kind(feature)})" for name, (_, feature) in columns.items())
        raise UserError(
            f"{where} has {problem}: set datasets.{key} to one of its columns, "
            f"{one_line(listed)[:LONGEST_LIST]}"
        )

    def choose(key: str, name: str, wanted: str, *candidates: list[str]) -> tuple[str, ...]:
        """The path of the named column, or of the only one of the first candidates there are; the
        last are all that may be named.
        """
        if name:
            if name not in candidates[-1]:
                fail(f"no column {one_line(name)} {WANTED[wanted]}", key)
            return columns[name][0]
        found = next(filter(None, candidates[:-1]), [])
        if len(found) != 1:
            several = f"several columns {WANTED[wanted]}"
            fail(several if found else f"no known column {WANTED[wanted]}", key)
        return columns[found[0]][0]

    def names_of(holds: Callable[[Any], Any]) -> list[str]:
        return [name for name, (_, feature) in columns.items() if holds(feature)]

    decoded = names_of(lambda feature: _dtype(feature) == IMAGE)
    images = names_of(_holds_image)
    chosen = choose("image", image, "image", decoded, images, images)
    if condition == "none":
        return Columns(chosen, (), ())
    classes = names_of(_classes)
    if condition == "class":
        text = choose("caption", caption, "class", classes, classes)
    else:
        texts = names_of(_is_text)
        likely = [name for name in texts if columns[name][0][-1].lower() in CAPTIONS]
        top = [name for name in likely if len(columns[name][0]) == 1]
        text = choose("caption", caption, "text", top, likely, texts + classes)
    return Columns(chosen, text, _classes(columns[".".join(text)][1]))


def _flat(features: Features) -> list[tuple[tuple[str, ...], Any]]:
    """(path, feature) of all columns, and of the fields of structs that hold no image."""
    out = []
    for name, feature in features.items():
        out.append(((name,), feature))
        if isinstance(feature, Mapping) and not _holds_image(feature):
            out += [((name, field), inner) for field, inner in feature.items()]
    return out


def _value(row: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = row
    for name in path:
        value = None if value is None else value.get(name)
    return value


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def _holds_image(feature: Any) -> bool:
    """Whether it is an image, bytes, or a struct of bytes and a path."""
    if isinstance(feature, Mapping):
        return _dtype(feature.get("bytes")) in BYTES
    return _dtype(feature) in (IMAGE, *BYTES)


def _is_text(feature: Any) -> bool:
    """Whether it is a text or a list of texts."""
    return _dtype(getattr(feature, "feature", feature)) in TEXT


def _classes(feature: Any) -> tuple[str, ...]:
    """The names of the classes that it numbers, () for other features."""
    return tuple(getattr(feature, "names", None) or ())


def _kind(feature: Any) -> str:
    """Its type, for messages."""
    if isinstance(feature, Mapping):
        return "struct"
    if inner := getattr(feature, "feature", None):
        return f"list of {_kind(inner)}"
    kind = type(feature).__name__
    return _dtype(feature) if kind == "Value" else kind
