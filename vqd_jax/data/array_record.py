"""Writes and reads data sets in the format of tensorflow-datasets, as array_record files, without
TensorFlow.

A set is written once, under a lock, beside its final folder, which a single rename creates. An
interrupted write starts again from the beginning.
"""

import contextlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from vqd_jax.core.checksums import CHECKSUMS, mismatch, write_checksums
from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import import_extra
from vqd_jax.core.files import lock, read_bounded
from vqd_jax.core.text_files import shown
from vqd_jax.data.source import Items
from vqd_jax.runtime.progress import track

SPLIT = "examples"
LAYOUT = "1.0.0"  # the version of the features; another one is written beside the old
JSON = ".json"
FEATURES = f"features{JSON}"
LONGEST_FEATURES = 2**24  # bytes
CLASSES = "tensorflow_datasets.core.features."
NOTES = f"notes{JSON}"
PARTIAL = "partial"  # the folder of an unfinished set, beside LAYOUT


def write(
    cache: str,
    name: str,
    *,
    features: Callable[[ModuleType], dict[str, Any]],
    examples: Callable[[], Iterable[dict[str, Any]]],
    total: int | None = None,
    description: str = "",
    progress: bool = True,
    notes: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Writes the folder `cache/name/LAYOUT`, unless it exists, and returns its path.

    Args:
      features: takes the module tensorflow_datasets and returns the features of an example.
      examples: the examples in order; images are encoded files.
      total: the number of examples, for the progress bar.
      progress: whether to show a progress bar.
      notes: stored as JSON once all examples are written, so `examples` may add to it.
    """
    final = pathlib.Path(cache).expanduser() / name / LAYOUT
    if final.exists():
        return final
    tensorflow_datasets()
    try:
        with lock(final.parent / "lock"):
            if not final.exists():
                rows = examples()
                if progress:
                    rows = track(rows, total, f"preparing {name} in {final}", "image")
                _write(final, name, features, rows, description, notes)
    except (OSError, RuntimeError) as error:
        # the message of the C++ writer contains its cause
        cause = re.search(r"\w+\(\) failed: ([^;]+)", str(error))
        if isinstance(error, RuntimeError) and not cause:
            raise
        shutil.rmtree(final.parent / PARTIAL, ignore_errors=True)
        raise UserError(
            f"the data set {name} cannot be written to {final}: {cause[1] if cause else error}"
        ) from error
    return final


def read(directory: pathlib.Path) -> Items:
    """The examples of a written data set by index; images are encoded files."""
    with damage(directory):
        _check(directory)
        return encoded(builder(directory), SPLIT)


def read_notes(directory: pathlib.Path) -> dict[str, Any]:
    """The notes of a written data set."""
    with damage(directory):
        _check(directory)
        return dict(json.loads((directory / NOTES).read_text(encoding="utf-8")))


def _check(directory: pathlib.Path) -> None:
    """ValueError if a JSON file has changed; sets of earlier versions have no checksums. The files
    with the examples have their own.
    """
    if (directory / CHECKSUMS).exists() and (wrong := mismatch(directory, only=JSON)):
        raise ValueError(wrong)


def tensorflow_datasets() -> ModuleType:
    """The library, whose format prepared data sets have."""
    return import_extra("tensorflow_datasets", "data", "a prepared data set")


def builder(directory: pathlib.Path) -> Any:
    """The tensorflow-datasets builder of a written data set. ValueError if its features are not all
    classes of tensorflow-datasets, which would import any module that they name.
    """
    tfds = tensorflow_datasets()

    if (directory / FEATURES).is_file():
        content = read_bounded(directory / FEATURES, LONGEST_FEATURES)
        for name in _class_names(json.loads(content)):
            if not name.startswith(CLASSES):
                raise ValueError(
                    f"{FEATURES} names {shown(name)}, which is no class of tensorflow-datasets"
                )
    return tfds.builder_from_directory(str(directory))


def _class_names(value: Any) -> Iterator[str]:
    """The Python classes that a part of features.json names; "type" and "content" are those of
    earlier versions.
    """
    if isinstance(value, list):
        for inner in value:
            yield from _class_names(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                if key in ("pythonClassName", "python_class_name", "type"):
                    yield inner
                inner = json.loads(inner) if key == "content" else None
            yield from _class_names(inner)


def encoded(builder: Any, split: str) -> Items:
    """A split of a tensorflow-datasets builder by index; images are encoded files."""
    tfds = tensorflow_datasets()

    images = [
        key
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    ]
    return builder.as_data_source(
        split, decoders={key: tfds.decode.SkipDecoding() for key in images}
    )


@contextlib.contextmanager
def damage(
    directory: pathlib.Path, remedy: str = "delete that folder, and it is written again"
) -> Iterator[None]:
    """Turns errors of reading a truncated or altered file, whose blocks have checksums, into a
    UserError with the remedy.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers raise nearly anything on altered files
        raise UserError(
            f"the prepared data set in {directory} is damaged ({error}): {remedy}"
        ) from error


def _write(
    final: pathlib.Path,
    name: str,
    features: Callable[[ModuleType], dict[str, Any]],
    examples: Iterable[dict[str, Any]],
    description: str,
    notes: dict[str, Any] | None,
) -> None:
    tfds = tensorflow_datasets()

    partial = final.parent / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(LAYOUT), data_dir=str(partial), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description or name,
        features=tfds.features.FeaturesDict(features(tfds)),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, sys.maxsize, file_format="array_record")
    writer.initialize_splits([SPLIT])
    writer.add_examples({SPLIT: examples})
    writer.close_all()
    if notes is not None:
        (partial / NOTES).write_text(json.dumps(notes), encoding="utf-8")
    write_checksums(partial, JSON)
    partial.rename(final)
