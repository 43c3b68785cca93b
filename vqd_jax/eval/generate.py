"""Generated pictures as a folder of PNG files, which any other program can read: made batch by
batch, no batch twice.

Picture i depends on its prompt, the seed, i and the size of the batches, so that a run that was
killed goes on with the same bits.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write, lock, remove_leftovers
from vqd_jax.data.image_bytes import encode_png
from vqd_jax.data.image_files import list_images
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import bar

DESCRIPTION, CAPTIONS = "pictures.json", "metadata.jsonl"


def generate(
    model: TextToImage,
    folder: Path,
    prompts: Sequence[str],
    *,
    seed: int,
    batch: int,
    settings: dict[str, Any],
    protocol: str,
) -> tuple[ImageFolder, float]:
    """The pictures of `prompts` in `folder`, those that are not there yet made now, and how many a
    second were made in all.

    `batch` is for each local device; `settings` are keywords of `model.settings`. Beside the
    pictures the folder gets a description and, when all are there, their prompts as `data.folder`
    reads captions. UserError if it holds pictures of another model, seed or settings, or others.
    """
    wanted = {
        "protocol": protocol,
        "model": model.digest,
        "prompts": _sha256("\n".join(prompts).encode()),
        "pictures": len(prompts),
        "seed": seed,
        "batch": batch,
        **settings,
        "with": str(model.settings(**settings)),
    }
    files = [f"{i:06d}.png" for i in range(len(prompts))]
    try:
        with lock(folder / ".lock"):
            remove_leftovers(folder)
            done = _begun(folder, json.loads(json.dumps(wanted)))
            there = list_images(folder)
            missing = next(
                (i // batch * batch for i, file in enumerate(files) if file not in there),
                len(files),
            )
            batches = (
                model.batches(prompts, batch, seed=seed, start=missing, **settings)
                if missing < len(files)
                else ()
            )
            _write_pictures(folder, files, batches, missing, done)
            if not (folder / CAPTIONS).exists() and model.config.condition.kind == "text":
                lines = (
                    json.dumps({"file_name": file, "text": prompt}, ensure_ascii=False)
                    for file, prompt in zip(files, prompts)
                )
                _write(folder / CAPTIONS, "\n".join(lines))
    except OSError as error:
        raise UserError(
            f"cannot write pictures into {folder}: {error.strerror or error}"
        ) from error
    return ImageFolder(folder, files), done["made"] / done["seconds"] if done["seconds"] else 0.0


def _write_pictures(
    folder: Path, files: list[str], batches: Iterable[np.ndarray], start: int, done: dict[str, Any]
) -> None:
    """Batches from number `start` on into the files; the description is told about each."""
    began = time.perf_counter()

    def write(file: str, image: np.ndarray) -> None:
        with atomic_write(folder / file, "the picture") as part:
            part.write_bytes(encode_png(image))

    with (
        bar(len(files), start, f"pictures into {folder}", "picture") as progress,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for images in batches:
            list(pool.map(write, files[start : start + len(images)], images))
            start, done["made"] = start + len(images), done["made"] + len(images)
            done["seconds"] += time.perf_counter() - began
            began = time.perf_counter()
            _write(folder / DESCRIPTION, json.dumps(done, indent=1))
            progress.update(len(images))


def _begun(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The description in the folder, written now if it is not there: what is wanted, and how many
    pictures took how many seconds.
    """
    path, remedy = folder / DESCRIPTION, "name another folder with --pictures, or delete this one"
    if not path.exists():
        if list_images(folder):
            raise UserError(f"{folder} holds pictures that were not made here: {remedy}")
        _write(path, json.dumps({"wanted": wanted, "made": 0, "seconds": 0.0}, indent=1))
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        found, _ = done["wanted"], (done["made"] + 0, done["seconds"] + 0.0)
        differences = [key for key in wanted if found[key] != wanted[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): delete it with its pictures"
        ) from error
    if differences:
        key = differences[0]
        values = "" if key in ("model", "prompts") else f" ({found[key]} there, {wanted[key]} here)"
        raise UserError(f"the pictures in {folder} are of another {key}{values}: {remedy}")
    if done["made"]:
        logging.info("going on with the pictures in %s", folder)
    return done


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
