"""The tokenizers of models without text: class labels by name or number, and no condition."""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vqd_jax.core.errors import UserError

CLASSES, NOTHING = "classes", "nothing"


class Classes:
    """Maps names or numbers of classes to numbers (b, 1).

    names: the name of each class, possibly empty. A name that several classes share means the first
    of them.
    """

    pad, length = 0, 1

    def __init__(self, names: Sequence[str]):
        if not names:
            raise UserError("a class model needs at least one class")
        self.names = tuple(names)
        self._numbers = {
            name.lower(): i for i, name in reversed(list(enumerate(self.names))) if name
        }

    @property
    def vocabulary(self) -> int:
        return len(self.names)

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b 1"]:
        return np.array([[self._number(caption)] for caption in captions], np.int32).reshape(-1, 1)

    def _number(self, caption: str) -> int:
        caption = caption.strip()
        number = self._numbers.get(caption.lower(), int(caption) if caption.isdecimal() else -1)
        if not 0 <= number < len(self.names):
            named = next(filter(None, self.names), None)
            example = f", or a name such as {named!r}" if named else ""
            raise UserError(
                f"this model draws classes: give a number from 0 to {len(self.names) - 1}"
                f"{example}; got {caption!r}"
            )
        return number

    def to_json(self) -> str:
        return json.dumps({"kind": CLASSES, "names": self.names})

    @classmethod
    def from_json(cls, text: str) -> "Classes":
        return cls(json.loads(text)["names"])


class Nothing:
    """Maps captions to ids (b, 0), for unconditional models."""

    pad, length, vocabulary = 0, 0, 0

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b 0"]:
        return np.zeros((len(captions), 0), np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": NOTHING})

    @classmethod
    def from_json(cls, text: str) -> "Nothing":
        return cls()
