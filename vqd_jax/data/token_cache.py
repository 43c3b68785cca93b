"""The codec's tokens of every image, computed once and cached on disk; or of chosen images only.

The name of a cache file is a hash of data set and codec weights, so a change of either misses it.
The file is a NumPy array, followed by its checksum.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from vqd_jax.core.checksums import array_bytes, array_from
from vqd_jax.core.files import atomic_write, lock, remove_leftovers
from vqd_jax.data.loader import sequential
from vqd_jax.data.source import Items, Source
from vqd_jax.runtime.progress import bar

BATCH = 64

Encode = Callable[[Any], Any]  # uint8 (BATCH, H, W, 3) → int tokens (BATCH, n)


def cached_tokens(
    folder: Path, source: Source, codec: PyTree, encode: Encode
) -> Int[np.ndarray, "i n"]:
    """The tokens of `source[i]` in row i; `codec` holds the weights that `encode` uses.

    Raises: UserError if the file cannot be written.
    """
    digest = hashlib.sha256(source.fingerprint.encode())
    for leaf in jax.tree.leaves(codec):
        digest.update(np.asarray(leaf).tobytes())
    path = folder / f"tokens-{digest.hexdigest()[:16]}.npy"
    stored = _read(path)
    if stored is not None and len(stored) == len(source):
        return stored.astype(np.int32)
    tokens = _encode(source, range(len(source)), encode, f"encoding images into {path}")
    small = tokens.max(initial=0) <= np.iinfo(np.uint16).max
    with lock(folder / "tokens.lock"):
        remove_leftovers(folder)
        with atomic_write(path, "tokens to") as part:
            part.write_bytes(array_bytes(tokens.astype(np.uint16) if small else tokens))
    return tokens


def _read(path: Path) -> np.ndarray | None:
    """The array in a cache file; None, which is told, if the file is damaged."""
    try:
        return array_from(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        print(f"{path} is damaged or of an earlier version: images are encoded again", flush=True)
        return None


def encode_records(
    source: Source, chosen: Iterable[int], encode: Encode
) -> dict[int, Int[np.ndarray, " n"]]:
    """i → the tokens of `source[i]` for each chosen i: for evaluation on a set whose tokens are
    computed during training.
    """
    chosen = sorted(set(chosen))
    if not chosen:
        return {}
    return dict(zip(chosen, _encode(source, chosen, encode, "encoding images for evaluation")))


def _encode(
    source: Source, chosen: Items, encode: Encode, description: str
) -> Int[np.ndarray, "i n"]:
    load = lambda i, rng: {"image": source[i]["image"]}
    rows = []
    with bar(len(chosen), description=description, unit="image") as progress:
        for batch, valid in sequential(chosen, BATCH, load):
            rows.append(np.asarray(encode(batch["image"]))[:valid])
            progress.update(valid)
    return np.concatenate(rows).astype(np.int32)
