"""What stands in for a tokenizer where there is no text: classes by name or number, or nothing at
all.
"""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vqd_jax.core.errors import UserError

CLASSES, NOTHING = "classes", "nothing"


class Classes:
    """Names or numbers of classes to their numbers (b, 1).

    Args:
      names: of each class, in order; they may be empty, and a name may stand for several classes,
      of which the first is meant.
    """

    pad, length = 0, 1

    def __init__(self, names: Sequence[str]):
        if not names:
            raise UserError("A class model needs at least one class.")
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
            known = (
                f", or a name such as {next(name for name in self.names if name)!r}"
                if self._numbers
                else ""
            )
            raise UserError(
                f"This model draws classes: give a number from 0 to {len(self.names) - 1}{known}; "
                f"got {caption!r}."
            )
        return number

    def to_json(self) -> str:
        return json.dumps({"kind": CLASSES, "names": self.names})

    @classmethod
    def from_json(cls, text: str) -> "Classes":
        return cls(json.loads(text)["names"])


class Nothing:
    """Any captions to (b, 0): unconditional models read none."""

    pad, length, vocabulary = 0, 0, 0

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b 0"]:
        return np.zeros((len(captions), 0), np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": NOTHING})

    @classmethod
    def from_json(cls, text: str) -> "Nothing":
        return cls()
