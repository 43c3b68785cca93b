"""The batches of each stage: which records, which captions, and images of the model's size."""

from typing import Any

import numpy as np
from jaxtyping import Int

from vqd_jax.core.errors import UserError
from vqd_jax.data.loader import Loader
from vqd_jax.data.source import Example, Record, Source
from vqd_jax.data.splits import SPLITS, TRAIN, TRAIN_VARIANTS, half
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.data.transforms import Transform

ROWS = 64  # of an evaluation batch


def indices(source: Source, *splits: str) -> list[int]:
    """The indices of the records in any of the splits, or of halves of splits such as
    "held_out_cells/test" (`splits.half`).
    """
    halved = {name.partition("/")[0] for name in splits if "/" in name}
    return [
        i
        for i, record in enumerate(source.records)
        if record.split in splits or record.split in halved and _half(record) in splits
    ]


def _half(record: Record) -> str:
    return f"{record.split}/{half(record.split, record.thing, record.style)}"


def training_indices(source: Source) -> list[int]:
    """The indices of all records to train on: originals and their variants."""
    return indices(source, TRAIN, TRAIN_VARIANTS)


def spread(items: list[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced; deterministic."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[i] for i in chosen]


def evaluation_records(source: Source, count: int) -> dict[str, list[int]]:
    """Split → the indices of the records on which the bound is measured during training."""
    return {name: spread(indices(source, name), count) for name in SPLITS}


def image_loader(source: Source, transform: Transform, **options: Any) -> Loader:
    """Batches of training images, uint8. `options` go to `Loader`."""
    load = lambda i, rng: {"image": transform(source[i]["image"], rng)}
    return Loader(training_indices(source), load=load, **options)


def pair_loader(
    source: Source,
    tokens: Int[np.ndarray, "i n"] | None,
    transform: Transform,
    tokenizer: Tokenizer,
    *,
    drop_words: float = 0.0,
    **options: Any,
) -> Loader:
    """Batches of training captions, one drawn for each image (`Record.draw_caption`), with the
    image's tokens, or with the image if `tokens` is None. `options` go to `Loader`.

    drop_words: the probability of leaving out each word of a caption; at least one word stays.
    """
    if not 0 <= drop_words < 1:
        raise UserError(f"data.drop_words is a probability in [0, 1), got {drop_words:g}")
    train = training_indices(source)
    ids = {}
    if not drop_words:
        texts = list(dict.fromkeys(text for i in train for text in source.records[i].captions))
        ids = dict(zip(texts, tokenizer(texts)))

    def load(i, rng):
        caption = source.records[i].draw_caption(rng)
        if drop_words:
            caption = randomly_drop_words(caption, drop_words, rng)
        text = ids[caption] if caption in ids else tokenizer([caption])[0]
        if tokens is None:
            return {"text": text, "image": transform(source[i]["image"], rng)}
        return {"text": text, "tokens": tokens[i]}

    return Loader(train, load=load, **options)


def randomly_drop_words(caption: str, share: float, rng: np.random.Generator) -> str:
    """The caption with each word left out with probability `share`; at least one word stays."""
    words = caption.split()
    draws = rng.random(len(words))
    return " ".join(
        word for word, draw in zip(words, draws) if draw >= share or draw == draws.max()
    )


class Resized:
    """A source with its images brought to the model's size; records of one image have the same
    entry in `files`.
    """

    def __init__(self, source: Source, transform: Transform):
        self._source, self._transform = source, transform
        self.records, self.skipped = source.records, source.skipped
        self.fingerprint = f"{source.fingerprint} {transform}"
        self.files = getattr(source, "files", range(len(source)))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Example:
        example = self._source[i]
        return example | {"image": self._transform(example["image"], None)}
