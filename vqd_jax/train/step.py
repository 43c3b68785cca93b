"""The training step of every stage: loss, gradient averaged over micro-batches and devices,
optimizer, moving average of the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.runtime.devices import platform
from vqd_jax.runtime.rows import Rows, mean
from vqd_jax.train.stage import Trainable
from vqd_jax.train.state import State, average

CACHED_POSITIONS = 1024  # of a micro-batch that a CPU's cache holds
# In the batches and metrics of several processes: what one of them asks all to do, if not 0. It got
# a signal to end, or a save is due by its clock.
REQUESTS = STOPPING, SAVING = "stopping", "saving"


def make_step(
    stage: Trainable, optimizer: optax.GradientTransformation, ema_decay: float, accumulate: int = 1
) -> Callable[..., tuple[State, dict[str, Any]]]:
    """Returns `step(state, frozen, batch, key, axis=None) -> (state, metrics)`.

    `key` is the root of the stage's randomness, into which the step number is folded here. `axis`
    names the devices that share the batch, under `pmap`. The gradient is that of the whole batch;
    with `accumulate` it is computed from that many micro-batches, one after the other.
    """

    def step(
        state: State, frozen: Params, batch: dict[str, Any], key: PRNGKey, axis: str | None = None
    ) -> tuple[State, dict[str, Any]]:
        key = jax.random.fold_in(key, state.step)
        rows = Rows.of_device(len(jax.tree.leaves(batch)[0]), axis)
        requests = {name: value.mean() for name, value in batch.items() if name in REQUESTS}
        batch = {name: value for name, value in batch.items() if name not in REQUESTS}

        def gradient(batch: dict[str, Any], rows: Rows) -> tuple[Any, Any, Any]:
            loss = lambda params: stage.loss(
                params, state.extra, frozen, batch, key, state.step, rows
            )
            grads, (aux, metrics) = jax.grad(loss, has_aux=True)(state.params)
            return aux, grads, metrics

        if accumulate == 1:
            aux, grads, metrics = gradient(batch, rows)
        else:
            aux, grads, metrics = scan_micro_batches(gradient, accumulate, batch, rows)
        grads, metrics = mean(grads, axis), mean(metrics | requests, axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = average(ema, params, ema_decay, state.step)
        extra, batch_metrics = stage.update_extra(state.extra, aux, key, state.step, axis)
        metrics |= batch_metrics | {"gradient_norm": optax.tree.norm(grads)}
        state = State(step=state.step + 1, params=params, ema=ema, opt_state=opt_state, extra=extra)
        return state, metrics

    return step


def default_micro_batches(rows: int, positions: int) -> int:
    """The number of micro-batches for `rows` examples, of `positions` each, on a device.

    On a CPU it is the smallest that leaves at most CACHED_POSITIONS to each, so that a layer finds
    in the cache what the one before it wrote; elsewhere it is 1.
    """
    if platform() != "cpu":
        return 1
    for count in range(1, rows):
        if rows % count == 0 and rows // count * positions <= CACHED_POSITIONS:
            return count
    return max(rows, 1)


def scan_micro_batches(
    gradient: Callable[[dict[str, Any], Rows], tuple[Any, Any, Any]],
    count: int,
    batch: dict[str, Any],
    rows: Rows,
) -> tuple[Any, Any, Any]:
    """`gradient` of all rows, from `count` micro-batches: (aux of all rows, mean gradient, mean
    metrics).

    A micro-batch takes every `count`-th row, so that a sharded batch stays on its devices.
    """
    split = lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    join = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    micro_batches = jax.tree.map(split, batch), split(rows.index)

    def one(batch: dict[str, Any], index: Int[Array, " b"]) -> tuple[Any, Any, Any]:
        return gradient(batch, Rows(index, rows.total, rows.axis, count))

    def add(total: Any, micro_batch: Any) -> tuple[Any, Any]:
        aux, *new = one(*micro_batch)
        return jax.tree.map(jnp.add, total, new), aux

    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], micro_batches))[1:]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), [*shapes])
    total, aux = jax.lax.scan(add, zeros, micro_batches)
    grads, metrics = jax.tree.map(lambda x: x / count, total)
    return jax.tree.map(join, aux), grads, metrics
