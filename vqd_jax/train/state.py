"""What training carries from step to step; together with the config and the seed it determines
everything that follows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import numpy as np
import optax
from jaxtyping import Array, Int

from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.data.loader import Batch
from vqd_jax.runtime.checkpoint import Checkpoints, fit, widen
from vqd_jax.train.stage import Stage


@flax.struct.dataclass
class State:
    """Fields carry no array types: the same tree also holds shapes, shardings and, under `pmap`,
    one copy for each device.

    Attributes:
      step: steps done.
      params: what gradients change.
      ema: the moving average of `params`, which is evaluated and sampled from; None without one.
      opt_state: the optimizer's state.
      extra: what a stage updates without gradients (codebook averages, losses per time).
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    extra: Any


def average(ema: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """The moving average after a step. Early on it follows faster, with decay
    (1 + step) / (10 + step).
    """
    decay = jax.numpy.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)


def restore_or_init(
    name: str,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    key: PRNGKey,
    batch: Batch,
    *,
    ema: bool,
    init_from: Callable[[Params], Params] | None = None,
) -> State:
    """The state of the latest checkpoint, or a fresh one.

    Args:
      name: of the stage, for messages.
      batch: the first of all processes together, which codebooks start from.
      ema: whether the state has a moving average.
      init_from: maps fresh parameters to those that training starts from.
    """

    def fresh(params: Params, extra: Any) -> State:
        return State(
            step=np.zeros((), np.int32),
            params=params,
            extra=extra,
            ema=jax.tree.map(np.array, params) if ema else None,
            opt_state=optimizer.init(params),
        )

    params, extra = jax.jit(stage.init)(key, batch)
    step = checkpoints.latest_step()
    if step is None:
        return fresh(init_from(params) if init_from else params, extra)
    if not checkpoints.has("state"):
        print(
            f"{name}: {checkpoints.folder} holds weights only; the optimizer and its averages "
            "start anew",
            flush=True,
        )
        stored = fit(
            widen(checkpoints.restore("weights")),
            stage.weights_of(params, extra),
            f"the weights in {checkpoints.folder}",
        )
        return dataclasses.replace(fresh(*stage.from_weights(stored)), step=np.int32(step))
    like = fresh(params, extra)
    names = ("step", "params", "opt_state", "extra")
    stored = checkpoints.restore("state", like={name: getattr(like, name) for name in names})
    average = None
    if ema:
        average = checkpoints.restore("weights", like=stage.weights_of(like.ema, extra))
    return State(ema=average, **stored)
