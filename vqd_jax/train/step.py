"""The one training step, for every stage: loss, gradients averaged over parts and devices,
optimizer, moving average of weights.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vqd_jax.core.shapes import PRNGKey
from vqd_jax.runtime.sharding import Rows, mean
from vqd_jax.train.state import State, average

CACHED = 1024  # tokens of a part for a CPU's cache
# in a batch of several processes: not 0 where one was told to end; in the metrics: not 0 then
STOPPING = "stopping"


@runtime_checkable
class Trainable(Protocol):
    """What a stage is to the step. `loss` is a mean over the rows of `batch`, and `seen` (each leaf
    with those rows first) is what `learn` makes the next `extra` of, and metrics that are no such
    mean, once for the whole batch of all devices.
    """

    def loss(
        self,
        params: Any,
        extra: Any,
        frozen: Any,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Any,
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """(loss, (seen, metrics))."""

    def update_extra(
        self, extra: Any, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[Any, dict[str, Any]]:
        """(extra, metrics)."""


def make_step(
    stage: Trainable, optimizer: optax.GradientTransformation, ema_decay: float, accumulate: int = 1
) -> Callable:
    """`step(state, frozen, batch, key, axis) -> (state, metrics)`; `key` is the stage's root, the
    step folds itself in.

    With `accumulate` the gradient is that of the whole batch too, but computed from so many parts
    of it, one after the other.
    """

    def step(
        state: State, frozen: Any, batch: dict[str, Any], key: PRNGKey, axis: str | None = None
    ):
        key = jax.random.fold_in(key, state.step)
        rows = Rows.here(len(jax.tree.leaves(batch)[0]), axis)
        stopping = {name: value.mean() for name, value in batch.items() if name == STOPPING}
        batch = {name: value for name, value in batch.items() if name != STOPPING}

        def gradient(batch: dict[str, Any], rows: Rows) -> tuple[Any, Any, Any]:
            value = lambda params: stage.loss(
                params, state.extra, frozen, batch, key, state.step, rows
            )
            grads, (aux, metrics) = jax.grad(value, has_aux=True)(state.params)
            return aux, grads, metrics

        aux, grads, metrics = (
            gradient(batch, rows)
            if accumulate == 1
            else scan_micro_batches(gradient, accumulate, batch, rows)
        )
        grads, metrics = mean(grads, axis), mean(metrics | stopping, axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else average(state.ema, params, ema_decay, state.step)
        extra, whole = stage.update_extra(state.extra, aux, key, state.step, axis)
        metrics = metrics | whole | {"gradient_norm": optax.global_norm(grads)}
        return State(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state, extra=extra
        ), metrics

    return step


def default_micro_batches(rows: int, tokens: int) -> int:
    """How many parts of a batch of `rows` examples of a device suit it: on a CPU as many as leave
    CACHED tokens to each, so that what one layer writes is still in the cache when the next one
    reads it; one elsewhere.
    """
    if jax.default_backend() != "cpu":
        return 1
    return next(
        (
            parts
            for parts in range(1, rows)
            if rows % parts == 0 and rows // parts * tokens <= CACHED
        ),
        max(rows, 1),
    )


def scan_micro_batches(
    gradient: Callable, parts: int, batch: dict[str, Any], rows: Rows
) -> tuple[Any, Any, Any]:
    """What `gradient` gives for all rows, from every `parts`-th row at a time: (seen of all rows,
    mean gradient, mean metrics).
    """
    cut = lambda x: jnp.swapaxes(
        x.reshape(-1, parts, *x.shape[1:]), 0, 1
    )  # a sharded batch stays where it is
    join = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    cuts = jax.tree.map(cut, batch), cut(rows.place)
    one = lambda batch, place: gradient(batch, Rows(place, rows.total, rows.axis, parts))

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        aux, *rest = one(*part)
        return jax.tree.map(jnp.add, total, rest), aux

    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], cuts))[1:]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), [*shapes])
    total, aux = jax.lax.scan(add, zeros, cuts)
    return jax.tree.map(join, aux), *jax.tree.map(lambda x: x / parts, total)
