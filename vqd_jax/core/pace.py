"""How steps, examples and places in the data order belong together."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pace:
    """A batch size, and what had happened when it came into force: a run that is resumed with
    another one goes on from the examples that it has seen.

    Attributes:
      batch_size: examples of a step, on all devices together.
      step: steps done by then.
      examples: examples seen by then.
      position: the place in the data order of the first batch of this size.
    """

    batch_size: int
    step: int = 0
    examples: int = 0
    position: int = 0

    def examples_at(self, step: Any) -> Any:
        """Examples seen in so many steps, an integer or an array of them."""
        return self.examples + (step - self.step) * self.batch_size

    def last_step(self, examples: int) -> int:
        """The last step of a training of so many examples."""
        return max(self.step + max(examples - self.examples, 0) // self.batch_size, 1)

    @property
    def head_start(self) -> float:
        """How many more steps of this size the examples would have been than were made; negative
        for fewer.
        """
        return self.examples / self.batch_size - self.step
