"""What training carries from step to step; together with the config and the seed it determines
everything that follows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.data.loader import Batch
from vqd_jax.runtime.checkpoint import Checkpoints, fit, widen
from vqd_jax.runtime.parallel import Parallelism
from vqd_jax.train.stage import Stage


@flax.struct.dataclass
class State:
    """Fields carry no array types: the same tree also holds shapes, shardings and, under `pmap`,
    one copy for each device.

    Attributes:
      step: steps done.
      params: the parameters.
      ema: the moving average of `params`, which is evaluated and sampled from; None without one,
        and in place of each parameter that is not trained.
      opt_state: the optimizer's state.
      extra: what a stage updates without gradients (codebook averages, losses per time).
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    extra: Any

    @property
    def averaged(self) -> Params:
        """The moving average, or the parameters where there is none."""
        if self.ema is None:
            return self.params
        choose = lambda ema, param: param if ema is None else ema
        return jax.tree.map(choose, self.ema, self.params, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def average(ema: Any, params: Params, decay: float, step: Int[Array, ""]) -> Any:
    """The moving average after a step. Early on it follows faster, with decay
    (1 + step) / (10 + step).
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    follow = lambda old, new: None if old is None else old + (1 - decay) * (new - old)
    return jax.tree.map(follow, ema, params, is_leaf=_is_none)


def first_average(params: Params, unchanged: Callable[[Params], Any] | None) -> Any:
    """The moving average before the first step, without the parameters that `unchanged` marks."""
    if unchanged is None:
        return jax.tree.map(jnp.copy, params)
    start = lambda skip, x: None if skip else jnp.copy(x)
    return jax.tree.map(start, unchanged(params), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateStore:
    """Makes, restores and stores the state of a stage. It lives where `parallel` places it, and
    nowhere else: not even for a moment does a device hold all of a state that is sharded.

    Attributes:
      name: of the stage, for messages.
      ema: whether the state has a moving average.
      init_from: maps fresh parameters to those that training starts from.
    """

    name: str
    stage: Stage
    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    parallel: Parallelism
    ema: bool
    init_from: Callable[[Params], Params] | None = None

    def restore_or_init(self, key: PRNGKey, batch: Batch) -> State:
        """The state of the latest checkpoint, or a fresh one; codebooks start from `batch`, the
        first of all processes together.
        """
        step = self.checkpoints.latest_step()
        if step is not None and self.checkpoints.has("state"):
            return self._restore(key, batch)
        if step is None and self.init_from is None:
            return self.parallel.create(self._init, key, batch)
        if step is None:
            params, extra = self.parallel.create(self.stage.init, key, batch)
            params = self.parallel.device_put(self.init_from(self.parallel.to_host(params)))
            return self.parallel.create(self._fresh, placed=(params, extra))
        print(
            f"{self.name}: {self.checkpoints.folder} holds weights only; the optimizer and its "
            "averages start anew",
            flush=True,
        )
        stored = fit(
            widen(self.checkpoints.restore("weights")),
            self.stage.weights_of(*jax.eval_shape(self.stage.init, key, batch)),
            f"the weights in {self.checkpoints.folder}",
        )
        placed = self.parallel.device_put(self.stage.from_weights(stored))
        start = lambda params, extra: self._fresh(params, extra, step)
        return self.parallel.create(start, placed=placed)

    def items(self, state: State) -> dict[str, Any]:
        """The items `state` and `weights` of a checkpoint."""
        weights = self.weights(state)
        names = self._fields(state)
        stored = {name: getattr(state, name) for name in names}
        return self.parallel.to_store({"state": stored, "weights": weights})

    def weights(self, state: State) -> Params:
        """All that sampling needs, where it is."""
        return self.stage.weights_of(state.averaged, state.extra)

    def _fields(self, state: State) -> list[str]:
        """Names of what is stored as `state`; with the weights of token stages, that is all."""
        complete = jax.tree.structure(self.weights(state)) == jax.tree.structure(state.params)
        average = [] if state.ema is None or complete else ["ema"]
        return ["step", "params", "opt_state", "extra", *average]

    def _init(self, key: PRNGKey, batch: dict[str, Any]) -> State:
        return self._fresh(*self.stage.init(key, batch))

    def _fresh(self, params: Params, extra: Any, step: int = 0) -> State:
        return State(
            step=jnp.full((), step, jnp.int32),
            params=params,
            extra=extra,
            ema=first_average(params, self.stage.unchanged) if self.ema else None,
            opt_state=self.optimizer.init(params),
        )

    def _restore(self, key: PRNGKey, batch: Batch) -> State:
        like = self.parallel.stored_like(jax.eval_shape(self._init, key, batch))
        names = self._fields(like)
        stored = self.checkpoints.restore(
            "state", like={name: getattr(like, name) for name in names}
        )
        if self.ema and "ema" not in names:
            weights = self.checkpoints.restore("weights", like=self.weights(like))
            skip = lambda ema, x: None if ema is None else x
            stored["ema"] = jax.tree.map(skip, like.ema, weights, is_leaf=_is_none)
        return self.parallel.device_put(State(**{"ema": None} | stored))
