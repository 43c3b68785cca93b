"""The examples of each stage: which records, with which captions, and as squares of the model's
size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader
from vqd_jax.data.source import Source
from vqd_jax.data.text.load import Tokenizer

ROWS = 64  # per batch of an evaluation


def indices(source: Source, *splits: str) -> list[int]:
    """Positions of the records in any of the splits."""
    return [i for i, record in enumerate(source.records) if record.split in splits]


def spread(items: list[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced: the same ones every time."""
    return (
        [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
        if items
        else []
    )


def evaluation_records(source: Source, count: int) -> dict[str, list[int]]:
    """Split → the positions of the records on which the bound is measured during training."""
    return {
        name: spread(indices(source, name), count)
        for name in ("train", "held_out_cells", "held_out_items")
    }


def image_loader(source: Source, transform: Callable, **options: Any) -> Loader:
    """Training images, uint8."""
    load = lambda i, rng: {"image": transform(source[i]["image"], rng)}
    return Loader(indices(source, "train"), load=load, **options)


def pair_loader(
    source: Source,
    tokens: np.ndarray | None,
    transform: Callable,
    tokenizer: Tokenizer,
    *,
    drop_words: float = 0.0,
    **options: Any,
) -> Loader:
    """Training captions (one of an image's, at random) with tokens, or with images where there are
    no tokens.

    `drop_words` is the probability with which each word of a caption is left out; one of them
    always stays.
    """
    if not 0 <= drop_words < 1:
        raise UserError(f"data.drop_words is a probability in [0, 1), got {drop_words:g}")
    train = indices(source, "train")
    ids = (
        {} if drop_words else {i: tokenizer(source.records[i].captions) for i in train}
    )  # else tokens change with every draw

    def load(i, rng):
        captions = source.records[i].captions
        chosen = rng.integers(len(captions))
        text = (
            tokenizer([randomly_drop_words(captions[chosen], drop_words, rng)])[0]
            if drop_words
            else ids[i][chosen]
        )
        return {"text": text} | (
            {"image": transform(source[i]["image"], rng)}
            if tokens is None
            else {"tokens": tokens[i]}
        )

    return Loader(train, load=load, **options)


def randomly_drop_words(caption: str, share: float, rng: np.random.Generator) -> str:
    """The caption without each of its words with probability `share`, but never without all."""
    words = caption.split()
    draws = rng.random(len(words))
    return " ".join(
        word for word, draw in zip(words, draws) if draw >= share or draw == draws.max()
    )


class Resized:
    """A source whose images all have the model's size; `files` tells which of its records share a
    picture.
    """

    def __init__(self, source: Source, transform: Callable):
        self._source, self._transform = source, transform
        self.records, self.skipped, self.fingerprint = (
            source.records,
            source.skipped,
            f"{source.fingerprint} {transform}",
        )
        self.files = getattr(source, "files", range(len(source)))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self._source[i]
        return example | {"image": self._transform(example["image"], None)}
