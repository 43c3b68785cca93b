"""The tokens of every image, computed once with the finished codec and kept on disk until codec or
data change; or of a few.
"""

import contextlib
import hashlib
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from vqd_jax.core.files import atomic_write, lock, remove_leftovers
from vqd_jax.data.loader import Items, sequential
from vqd_jax.data.source import Source
from vqd_jax.runtime.progress import bar

BATCH = 64


def cached_tokens(
    folder: Path, source: Source, codec: Any, encode: Callable[[Any], Any]
) -> Int[np.ndarray, "i n"]:
    """Tokens of source[i] in row i; `encode` maps uint8 (64, H, W, 3) to int (64, n), `codec` are
    its weights.

    UserError if they cannot be written.
    """
    digest = hashlib.sha256(source.fingerprint.encode())
    for leaf in jax.tree.leaves(codec):
        digest.update(np.asarray(leaf).tobytes())
    path = folder / f"tokens-{digest.hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # a damaged file is made again
        if len(stored := np.load(path)) == len(source):
            return stored
    tokens = _encoded(source, range(len(source)), encode, f"encoding images into {path}")
    with lock(folder / "tokens.lock"):
        remove_leftovers(folder)
        with atomic_write(path, "tokens to") as part, part.open("wb") as file:
            np.save(
                types.SimpleNamespace(write=file.write), tokens
            )  # with the file itself NumPy would not say why it failed
    return tokens


def encode_records(
    source: Source, chosen: Iterable[int], encode: Callable[[Any], Any]
) -> dict[int, np.ndarray]:
    """i → tokens (n,) of source[i], for the chosen i only: what evaluations need of a set that is
    encoded during training.
    """
    chosen = sorted(set(chosen))
    return (
        dict(zip(chosen, _encoded(source, chosen, encode, "encoding images for evaluation")))
        if chosen
        else {}
    )


def _encoded(
    source: Source, chosen: Items, encode: Callable[[Any], Any], description: str
) -> np.ndarray:
    rows = []
    with bar(len(chosen), description=description, unit="image") as progress:
        for batch, valid in sequential(chosen, BATCH, lambda i, rng: {"image": source[i]["image"]}):
            rows.append(np.asarray(encode(batch["image"]))[:valid])
            progress.update(valid)
    return np.concatenate(rows).astype(np.int32)
