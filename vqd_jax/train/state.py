"""What training carries from step to step; together with (config, seed) it determines everything
that follows.
"""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Int


@flax.struct.dataclass
class State:
    """Fields carry no array types: under `pmap` and in checkpoints the same tree holds other shapes
    and kinds of leaves.

    Attributes:
      step: steps done.
      params: what gradients change.
      ema: their moving average, which is evaluated and sampled; None where the stage keeps none.
      opt_state: the optimizer's.
      extra: what the stage learns without gradients (codebook averages, the history of losses per
      time).
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    extra: Any


def average(ema: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The moving average after a step; early on it follows faster, with decay (1 + step) / (10 +
    step).
    """
    decay = jax.numpy.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
