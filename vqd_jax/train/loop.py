"""The one training loop: resume, step, log, evaluate, save. Lengths and intervals are in examples seen."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics
from clu import parameter_overview

from vqd_jax.checkpoint import Checkpoints, fit, widen
from vqd_jax.data.loader import Loader
from vqd_jax.errors import UserError
from vqd_jax.log import Log
from vqd_jax.progress import bar
from vqd_jax.shapes import PRNGKey
from vqd_jax.sharding import Pmap, Sharded
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Attributes:
      examples: length of the stage. batch_size: global. accumulate: parts of the batch whose gradients are computed one after the other.
      ema: decay of the moving average of the weights; 0 for none.
      log_every, evaluate_every, save_every: intervals in examples. keep: checkpoints kept.
    """

    examples: int
    batch_size: int
    accumulate: int
    ema: float
    log_every: int
    evaluate_every: int
    save_every: int
    keep: int

    def __post_init__(self):
        if min(self.examples, self.batch_size, self.accumulate, self.log_every, self.evaluate_every, self.save_every) < 1:
            raise UserError("examples, batch_size, accumulate and the intervals of a training section must be positive")

    @property
    def steps(self) -> int:
        return max(self.examples // self.batch_size, 1)

    def every(self, examples: int) -> int:
        return max(examples // self.batch_size, 1)


def run(name: str, stage: Any, *, train: Train, optim: Optim, loader: Loader, parallel: Pmap | Sharded, checkpoints: Checkpoints,
        log: Log, key: PRNGKey, frozen: Any, items: dict[str, Any], evaluate: Callable[[int, Any], dict[str, float]],
        begin: Callable[[Any], Any] | None = None) -> Any:
    """Trains a stage up to `train.steps` and returns its weights on the host.

    Args:
      stage: `init(key, batch) -> (params, extra)`, `loss` and `learn` (see `train.step.Trainable`), `weights_of(params, extra)`,
        `from_weights(weights) -> (params, extra)` for checkpoints that hold nothing else, and `unchanged`, None or a function
        from the parameters to a tree that is True where training leaves them alone.
      items: what else a checkpoint holds (config, tokenizer).
      evaluate: `(step, weights) -> scalars`; it may write pictures.
      begin: fresh parameters to those that training begins with.
    """
    parallel.check_batch(train.batch_size, train.accumulate)
    init_key, train_key = jax.random.split(key)
    optimizer = optim.build(train.steps, train.batch_size, stage.unchanged)
    state = _restore_or_init(name, stage, optimizer, train, loader, checkpoints, init_key, begin)
    first = int(state.step)
    log.rewind(first)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False), flush=True)
    print(f"{name}: {first} of {train.steps} steps of {train.batch_size} done, on {parallel.text}; "
          f"checkpoints in {checkpoints.folder}", flush=True)

    step_fn = parallel.compile(make_step(stage, optimizer, train.ema, train.accumulate))
    state, frozen = parallel.place(state), parallel.place(frozen)
    totals, waited, last, weights = {}, 0.0, time.perf_counter(), None
    log_every, evaluate_every, save_every = map(train.every, (train.log_every, train.evaluate_every, train.save_every))
    with loader.iterate(first) as batches, bar(train.steps, first, name) as progress:
        for step in range(first + 1, train.steps + 1):
            asked = time.perf_counter()
            batch = parallel.shard(next(batches))
            waited += time.perf_counter() - asked
            state, values = step_fn(state, frozen, batch, train_key)
            totals = _merge(totals, parallel.first(values))
            final = step == train.steps
            if step % log_every == 0 or final:
                means = {k: float(v.compute()) for k, v in totals.items()}
                now, done = time.perf_counter(), int(totals["loss"].count)
                rates = {"examples_per_second": done * train.batch_size / (now - last), "input_wait": waited / (now - last)}
                log.write(step, means | rates | {"examples": step * train.batch_size}, "train/")
                progress.update(0, loss=means["loss"])
                totals, waited, last = {}, 0.0, now
            progress.update()
            if step % evaluate_every == 0 or step % save_every == 0 or final:
                here = parallel.first(state)
                weights = parallel.host(stage.weights_of(here.params if here.ema is None else here.ema, here.extra))
                if step % evaluate_every == 0 or final:
                    log.write(step, evaluate(step, weights), "held_out/")
                if step % save_every == 0 or final:
                    stored = {"step": here.step, "params": here.params, "opt_state": here.opt_state, "extra": here.extra}
                    checkpoints.save(step, {"state": stored, "weights": weights} | items)
                last = time.perf_counter()
    checkpoints.wait()
    return weights if weights is not None else widen(checkpoints.restore("weights"))


def _restore_or_init(name: str, stage: Any, optimizer: Any, train: Train, loader: Loader, checkpoints: Checkpoints,
                     key: PRNGKey, begin: Callable[[Any], Any] | None) -> State:
    batch = loader.whole(0)  # the codes of a codebook start on it, in every process on the same ones
    fresh = lambda params, extra: State(step=np.zeros((), np.int32), params=params, extra=extra,
                                        ema=jax.tree.map(np.array, params) if train.ema else None,
                                        opt_state=optimizer.init(params))
    params, extra = jax.jit(stage.init)(key, batch)
    if checkpoints.latest_step() is None:
        return fresh(begin(params) if begin else params, extra)
    if not checkpoints.has("state"):
        print(f"{name}: {checkpoints.folder} holds weights only; the optimizer and its averages start anew", flush=True)
        what = f"the weights in {checkpoints.folder}"
        stored = fit(widen(checkpoints.restore("weights")), stage.weights_of(params, extra), what)
        return fresh(*stage.from_weights(stored)).replace(step=np.int32(checkpoints.latest_step()))
    like = fresh(params, extra)
    stored = checkpoints.restore("state", like={"step": like.step, "params": like.params, "opt_state": like.opt_state,
                                                "extra": like.extra})
    ema = None if like.ema is None else checkpoints.restore("weights", like=stage.weights_of(like.ema, extra))
    return State(ema=ema, **stored)


def _merge(totals: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Running averages of a step's metrics (clu); stays on the device until computed."""
    one = {k: clu_metrics.Average(total=v, count=np.float32(1)) for k, v in values.items()}
    return {k: totals[k].merge(v) for k, v in one.items()} if totals else one

