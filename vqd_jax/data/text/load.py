"""The interface of a tokenizer, and loading one from the JSON in a checkpoint.

A tokenizer has a fixed `length`, so all batches of captions have one shape and a model compiles
once.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vqd_jax.core.errors import UserError
from vqd_jax.data.text import bpe, clip, labels

KINDS: dict[str, Any] = {
    bpe.KIND: bpe.BytePair,
    clip.KIND: clip.ClipTokenizer,
    labels.CLASSES: labels.Classes,
    labels.NOTHING: labels.Nothing,
}


LOOKED_AT = 100_000  # captions, in search of those that are too long


@runtime_checkable
class Tokenizer(Protocol):
    """Maps captions to ids (b, `length`) below `vocabulary`, padded with `pad`."""

    length: int
    pad: int

    @property
    def vocabulary(self) -> int: ...
    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b m"]: ...
    def to_json(self) -> str: ...


def load_tokenizer(text: str) -> Tokenizer:
    """Loads a tokenizer from the JSON of its `to_json`. UserError if the text is something else."""
    try:
        kind = json.loads(text)["kind"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f'the stored tokenizer is not JSON with a "kind" of {" or ".join(KINDS)}'
        ) from error
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"the stored tokenizer is of the kind {kind!r}; known kinds are {' and '.join(KINDS)}"
        )
    return KINDS[kind].from_json(text)


def unread(tokenizer: Tokenizer, captions: Sequence[str]) -> list[str]:
    """What of each caption is not read, since it is longer than `length`; "" if nothing."""
    if isinstance(tokenizer, (bpe.BytePair, clip.ClipTokenizer)):
        return tokenizer.unread(captions)
    return [""] * len(captions)


def told_cut(tokenizer: Tokenizer, captions: Iterable[str]) -> str:
    """How many of the different captions are cut, as a sentence; "" if none is. Of very many, an
    even choice is looked at.
    """
    captions = list(dict.fromkeys(captions))
    looked = captions[:: -(-len(captions) // LOOKED_AT) or 1]
    cut = sum(map(bool, unread(tokenizer, looked)))
    if not cut:
        return ""
    key = " (learned_text.length)" if isinstance(tokenizer, bpe.BytePair) else ""
    return (
        f"{cut:,} of {len(looked):,} captions are longer than the {tokenizer.length} tokens that "
        f"are read{key}: their ends have no effect"
    )
