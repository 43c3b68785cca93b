"""Cleaning of captions as data sets distribute them."""

import unicodedata
from collections.abc import Iterable

INVISIBLE = {"Cc", "Cf", "Zs"}  # Unicode categories: controls, directions and joiners, spaces


def lower_case(caption: str) -> str:
    """Lower case, single spaces, and no U+FFFD, which marks bytes lost in the published files."""
    return " ".join(caption.replace("\ufffd", " ").lower().split())


def visible(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions with single spaces, without repetitions and without invisible ones."""
    captions = (" ".join(caption.split()) for caption in captions)
    return tuple(
        dict.fromkeys(
            caption
            for caption in captions
            if any(unicodedata.category(c) not in INVISIBLE for c in caption)
        )
    )
