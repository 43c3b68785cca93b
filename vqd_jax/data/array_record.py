"""Data sets written once to disk as array_record files (tensorflow-datasets, without TensorFlow)
and read by index.

A build appears in its place by one rename, under a lock, so it is either whole or absent: a killed
build is made again.
"""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import lock
from vqd_jax.runtime.progress import track

SPLIT = "examples"
LAYOUT = "1.0.0"  # of the stored features; a new one is built beside the old
NOTES = "notes.json"
PARTIAL = "partial"  # a folder beside that of a layout: what is not whole yet


def prepare(
    cache: str,
    name: str,
    *,
    features: Callable[[Any], dict[str, Any]],
    examples: Callable[[], Iterable[dict[str, Any]]],
    total: int | None = None,
    description: str = "",
    shown: bool = True,
    notes: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Build `cache/name/LAYOUT` unless it exists, and return that directory.

    features: tfds → the feature dict of an example. examples: the examples in the order in which
    they are to be read.
    shown: with a progress bar. notes: kept beside the examples as JSON, as they are after the last
    example.
    """
    final = pathlib.Path(cache).expanduser() / name / LAYOUT
    if final.exists():
        return final
    try:
        with lock(final.parent / "lock"):
            if not final.exists():
                _build(
                    final,
                    name,
                    features,
                    track(examples(), total, f"preparing {name} in {final}", "image")
                    if shown
                    else examples(),
                    description,
                    notes,
                )
    except (OSError, RuntimeError) as error:
        found = re.search(
            r"\w+\(\) failed: ([^;]+)", str(error)
        )  # the writer's own error, in the middle of much else
        if isinstance(error, RuntimeError) and not found:
            raise
        shutil.rmtree(final.parent / PARTIAL, ignore_errors=True)
        raise UserError(
            f"The data set {name} cannot be written to {final}: {found[1] if found else error}."
        ) from error
    return final


def read(directory: pathlib.Path, *, decode: bool = True) -> Any:
    """The examples of a built data set by index; `decode=False` leaves images as their encoded
    bytes.
    """
    import tensorflow_datasets as tfds

    with damage(directory):
        builder = tfds.builder_from_directory(str(directory))
        return builder.as_data_source(SPLIT) if decode else encoded(builder, SPLIT)


def encoded(builder: Any, split: str) -> Any:
    """A split of a tensorflow-datasets builder by index, its images as their encoded bytes."""
    import tensorflow_datasets as tfds

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
    directory: pathlib.Path, remedy: str = "delete that folder and it is made again"
) -> Iterator[None]:
    """Reading a cut or altered file (its blocks carry hashes) becomes a UserError that says what to
    delete.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The prepared data set in {directory} is damaged ({error}): {remedy}."
        ) from error


def _build(
    final: pathlib.Path,
    name: str,
    features: Callable,
    examples: Iterable[dict[str, Any]],
    description: str,
    notes: dict[str, Any] | None,
) -> None:
    import tensorflow_datasets as tfds

    partial = final.parent / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(LAYOUT)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=description or name,
                disable_shuffling=True,
                features=tfds.features.FeaturesDict(features(tfds)),
            )

        def _split_generators(self, dl_manager):
            return {SPLIT: enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    tfds.disable_progress_bar()
    builder = Builder(data_dir=str(partial), file_format="array_record")
    with contextlib.redirect_stdout(
        None
    ):  # it announces the partial directory; the bar above names the final one
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    if notes is not None:
        (pathlib.Path(builder.data_dir) / NOTES).write_text(json.dumps(notes), encoding="utf-8")
    pathlib.Path(builder.data_dir).rename(final)
    shutil.rmtree(partial, ignore_errors=True)
