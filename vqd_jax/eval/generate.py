"""Generates images for a list of prompts into a folder of PNG files, batch by batch.

Image i depends on its prompt, the seed, i and the batch size, so that a run that was stopped
continues with the same bits.
"""

import concurrent.futures
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vqd_jax.core.cores import cores
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
    """Generates the images of `prompts` that `folder` does not have yet. Returns all of them, and
    images per second over all runs.

    `batch` is per local device; `settings` are keywords of `model.settings`. The folder also gets a
    description and, once all images are there, their prompts in the format of captions that
    `data.captioned_folder` reads. UserError if it holds other images, or images of another model,
    seed or settings.
    """
    requested = {
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
            state = _open(folder, json.loads(json.dumps(requested)))
            existing = {*list_images(folder)}
            start = next(
                (i // batch * batch for i, file in enumerate(files) if file not in existing),
                len(files),
            )
            if start < len(files):
                batches = model.batches(prompts, batch, seed=seed, start=start, **settings)
                _write_images(folder, files, batches, start, state)
            if not (folder / CAPTIONS).exists() and model.config.condition.kind == "text":
                lines = (
                    json.dumps({"file_name": file, "text": prompt}, ensure_ascii=False)
                    for file, prompt in zip(files, prompts)
                )
                _write(folder / CAPTIONS, "\n".join(lines))
    except OSError as error:
        raise UserError(f"cannot write images into {folder}: {error.strerror or error}") from error
    rate = state["made"] / state["seconds"] if state["seconds"] else 0.0
    return ImageFolder(folder, files), rate


def compute_batches(
    folder: Path,
    requested: dict[str, Any],
    count: int,
    batch: int,
    compute: Callable[[int, int], Int[np.ndarray, "b n"]],
    description: str,
) -> Int[np.ndarray, "count n"]:
    """The rows of `compute(first, end)`, `batch` at a time. Each batch is kept in a file of
    `folder`, so that a run that was stopped goes on after those that are there.

    `requested` says what the rows are of. UserError if the folder holds rows of something else.
    """
    rows = []
    try:
        with lock(folder / ".lock"), bar(count, 0, description, "image") as progress:
            remove_leftovers(folder)
            _open(folder, json.loads(json.dumps(requested | {"batch": batch, "rows": count})))
            for first in range(0, count, batch):
                path, end = folder / f"{first:06d}.npy", min(first + batch, count)
                if not path.exists():
                    with atomic_write(path, "tokens to") as part, part.open("wb") as file:
                        np.save(file, compute(first, end))
                rows.append(np.load(path))
                progress.update(end - first)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot keep tokens in {folder}: {error}") from error
    return np.concatenate(rows)


def _write_images(
    folder: Path,
    files: list[str],
    batches: Iterable[UInt8[np.ndarray, "b H W 3"]],
    start: int,
    state: dict[str, Any],
) -> None:
    """Writes the batches, from image `start` on, and updates the state after each."""
    began = time.perf_counter()

    def write(file: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        with atomic_write(folder / file, "the image") as part:
            part.write_bytes(encode_png(image))

    with (
        bar(len(files), start, f"images into {folder}", "image") as progress,
        concurrent.futures.ThreadPoolExecutor(cores()) as pool,
    ):
        for images in batches:
            list(pool.map(write, files[start : start + len(images)], images))
            start += len(images)
            state["made"] += len(images)
            state["seconds"] += time.perf_counter() - began
            began = time.perf_counter()
            _write(folder / DESCRIPTION, json.dumps(state, indent=1))
            progress.update(len(images))


def _open(folder: Path, requested: dict[str, Any]) -> dict[str, Any]:
    """The state of the folder: "wanted", which must equal `requested`, and how many images were
    "made" in how many "seconds". A new folder gets a new state.
    """
    path, remedy = folder / DESCRIPTION, "name another folder with --pictures, or delete this one"
    if not path.exists():
        if list_images(folder):
            raise UserError(f"{folder} holds images that vqd did not generate: {remedy}")
        _write(path, json.dumps({"wanted": requested, "made": 0, "seconds": 0.0}, indent=1))
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        stored, _ = state["wanted"], (state["made"] + 0, state["seconds"] + 0.0)
        differences = [key for key in requested if stored[key] != requested[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): delete it with its images"
        ) from error
    if differences:
        key = differences[0]
        values = f" ({stored[key]} there, {requested[key]} requested)"
        if key in ("model", "prompts"):
            values = ""
        raise UserError(f"the images in {folder} have another {key}{values}: {remedy}")
    if state["made"]:
        logging.info("continuing with the images in %s", folder)
    return state


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
