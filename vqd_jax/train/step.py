"""The one training step, for every stage: loss, gradients averaged over devices, optimizer, moving average of weights."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import optax
from jaxtyping import Array, Float

from vqd_jax.shapes import PRNGKey
from vqd_jax.sharding import mean
from vqd_jax.train.state import State, average


@runtime_checkable
class Loss(Protocol):
    """`(params, extra, frozen, batch, key, step, axis) -> (loss, (extra, metrics))`; means are over this device's rows."""

    def __call__(self, params: Any, extra: Any, frozen: Any, batch: dict[str, Any], key: PRNGKey, step: Any,
                 axis: str | None) -> tuple[Float[Array, ""], tuple[Any, dict[str, Any]]]: ...


def make_step(loss: Loss, optimizer: optax.GradientTransformation, ema_decay: float) -> Callable:
    """`step(state, frozen, batch, key, axis) -> (state, metrics)`; `key` is the stage's root, the step folds itself in."""

    def step(state: State, frozen: Any, batch: dict[str, Any], key: PRNGKey, axis: str | None = None):
        key = jax.random.fold_in(key, state.step)
        value = lambda params: loss(params, state.extra, frozen, batch, key, state.step, axis)
        grads, (extra, metrics) = jax.grad(value, has_aux=True)(state.params)
        grads, metrics = mean(grads, axis), mean(metrics, axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else average(state.ema, params, ema_decay, state.step)
        metrics = metrics | {"gradient_norm": optax.global_norm(grads)}
        return State(step=state.step + 1, params=params, ema=ema, opt_state=opt_state, extra=extra), metrics

    return step
