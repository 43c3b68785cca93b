"""The tokens of every image, computed once with the finished codec and kept on disk until codec or data change."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from vqd_jax.data.loader import sequential
from vqd_jax.data.source import Source
from vqd_jax.progress import bar

BATCH = 64


def cached_tokens(folder: Path, source: Source, codec: Any, encode: Callable[[Any], Any]) -> Int[np.ndarray, "i n"]:
    """Tokens of source[i] in row i; `encode` maps uint8 (64, H, W, 3) to int (64, n), `codec` are its weights."""
    digest = hashlib.sha256(source.fingerprint.encode())
    for leaf in jax.tree.leaves(codec):
        digest.update(np.asarray(leaf).tobytes())
    path = folder / f"tokens-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        return np.load(path)
    rows = []
    with bar(len(source), description=f"encoding images into {path}", unit="image") as progress:
        for batch, valid in sequential(range(len(source)), BATCH, lambda i, rng: {"image": source[i]["image"]}):
            rows.append(np.asarray(encode(batch["image"]))[:valid])
            progress.update(valid)
    tokens = np.concatenate(rows).astype(np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, tokens)
    part.rename(path)
    return tokens
