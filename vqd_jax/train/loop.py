"""The one training loop: resume, step, check, log, save, evaluate. Lengths and intervals are in
examples seen.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import PRNGKey
from vqd_jax.data.loader import Loader
from vqd_jax.runtime import distributed, signals
from vqd_jax.runtime.checkpoint import Checkpoints, fit, widen
from vqd_jax.runtime.hardware import describe_machine
from vqd_jax.runtime.log import Log, read_metrics
from vqd_jax.runtime.progress import bar
from vqd_jax.runtime.sharding import Pmap, Sharded
from vqd_jax.runtime.workdir import MACHINE
from vqd_jax.train.cost.flops import of_step
from vqd_jax.train.guard import Fault, Guard, LossRecord
from vqd_jax.train.meter import Cost, Meter
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.state import State
from vqd_jax.train.step import STOPPING, default_micro_batches, make_step
from vqd_jax.train.watchdog import Watchdog

HELD_OUT = "held_out/"  # how the log calls what `evaluate` gives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Attributes:
    examples: length of the stage. batch_size: global.
    accumulate: parts of the batch whose gradients are computed one after the other; 0 for as many
    as `train.step.cached_parts` says.
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
        if (
            min(
                self.examples, self.batch_size, self.log_every, self.evaluate_every, self.save_every
            )
            < 1
            or self.accumulate < 0
        ):
            raise UserError(
                "examples, batch_size and the intervals of a training section must be positive, "
                "accumulate at least 0"
            )

    @property
    def steps(self) -> int:
        return max(self.examples // self.batch_size, 1)

    def due(self, step: int, examples: int) -> bool:
        """Whether what is done at that interval is done after this step; at the end all is."""
        return step % max(examples // self.batch_size, 1) == 0 or step >= self.steps


def run(
    name: str,
    stage: Any,
    *,
    train: Train,
    optim: Optim,
    guard: Guard,
    profile: Profile,
    loader: Loader,
    parallel: Pmap | Sharded,
    checkpoints: Checkpoints,
    log: Log,
    key: PRNGKey,
    frozen: Any,
    items: dict[str, Any],
    evaluate: Callable[[int, Any], dict[str, float]],
    init_from: Callable[[Any], Any] | None = None,
    refresh: Callable[[], None] = lambda: None,
    report: Callable[[], None] = lambda: None,
    describe: Callable[[Any], str] = str,
) -> Any:
    """Trains a stage up to `train.steps` and returns its weights on the host.

    Args:
      stage: `init(key, batch) -> (params, extra)`, `loss` and `learn` (see `train.step.Trainable`),
        `weights_of(params, extra)`, `from_weights(weights) -> (params, extra)` for checkpoints that
        hold nothing else, `unchanged`, None or a function from the parameters to a tree that is
        True where training leaves them alone, `watched`, the metric whose jumps `guard` minds, and
        `tokens`, of an example, which only `accumulate` 0 asks for.
      items: what else a checkpoint holds (config, tokenizer).
      evaluate: `(step, weights) -> scalars`; it may write pictures.
      begin: fresh parameters to those that training begins with.
      look: called before checkpoints are read again; afterwards every process must see the latest.
      report: called after evaluations and saves, when the log has them.
      describe: an item of the loader, for messages.
    """
    parts = train.accumulate or default_micro_batches(
        train.batch_size // parallel.count, stage.tokens
    )
    parallel.check_batch(train.batch_size, parts)
    init_key, train_key = jax.random.split(key)
    optimizer = optim.build(train.steps, train.batch_size, stage.unchanged)
    cost = Cost(
        flops=parallel.replicas
        * of_step(stage, frozen, loader.example(0), train.batch_size // parallel.replicas),
        examples=train.batch_size,
        devices=parallel.count,
        kind=jax.local_devices()[0].device_kind,
    )
    training = _Training(
        name=name,
        stage=stage,
        train=train,
        guard=guard,
        profile=profile,
        cost=cost,
        loader=loader,
        parallel=parallel,
        checkpoints=checkpoints,
        log=log,
        key=train_key,
        frozen=parallel.place(frozen),
        items=items,
        evaluate=evaluate,
        report=report,
        step=parallel.compile(make_step(stage, optimizer, train.ema, parts)),
    )
    begun, faults = (
        None,
        [],
    )  # since the checkpoint of step `begun`: (step, what was wrong, batches left out)
    while True:
        state = _restore_or_init(
            name, stage, optimizer, train, loader, checkpoints, init_key, init_from
        )
        record, first = _record(checkpoints), int(state.step)
        if begun is None:
            print(
                parameter_overview.get_parameter_overview(state.params, include_stats=False),
                flush=True,
            )
            print(f"{name}: {cost.text}", flush=True)
            log.note(
                MACHINE,
                describe_machine() | {"devices": cost.devices, "flops_per_step": cost.flops},
            )
        begun, faults = first, faults if first == begun else []
        log.rewind(first)
        for step, _, batches in faults:
            record.leave_out(batches)
            log.write(
                first + 1,
                {"step": step, "first_batch": batches[0], "batches": len(batches)},
                "fault/",
            )
        print(
            f"{name}: {first} of {train.steps} steps of {train.batch_size} done, on "
            f"{parallel.text}; "
            f"checkpoints in {checkpoints.folder}",
            flush=True,
        )
        try:
            return training.go(state, record)
        except Fault as fault:
            del state
            checkpoints.wait()
            refresh()
            first = checkpoints.latest_step() or 0
            count = 1 + (len(faults) if first == begun else 0)
            batches = record.up_to(first, fault.step, 2 ** (count - 1))
            what = f"{fault} in step {fault.step}, with {_described(loader, batches[-1], describe)}"
            begun, faults = (
                first,
                (faults if first == begun else []) + [(fault.step, what, batches)],
            )
            if count > guard.tries:
                raise UserError(
                    f"{name}: {count} faults in a row since step {first}: "
                    f"{'; '.join(what for _, what, _ in faults)}; the "
                    f"checkpoints in {checkpoints.folder} are as good as they were: try a lower "
                    "learning rate, or look at "
                    "these examples"
                ) from None
            left = (
                f"batch {batches[0]}"
                if len(batches) == 1
                else f"batches {batches[0]} to {batches[-1]}"
            )
            print(f"\n{name}: {what}: back to step {first}, without {left}", flush=True)


def unevaluated(train: Train, checkpoints: Checkpoints, folder: Path) -> bool:
    """Whether the latest checkpoint is one that training ended on before it was evaluated; `folder`
    has its log. All processes call it.
    """
    step = checkpoints.latest_step()
    due = step is not None and train.due(step, train.evaluate_every) and checkpoints.has("record")
    with contextlib.suppress(UserError):
        due = due and not any(
            row["step"] == step and any(key.startswith(HELD_OUT) for key in row)
            for row in read_metrics(folder)
        )
    return distributed.broadcast_flag(due)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Training:
    """The steps from one restored state on; what `run` was told."""

    name: str
    stage: Any
    train: Train
    guard: Guard
    profile: Profile
    cost: Cost
    loader: Loader
    parallel: Pmap | Sharded
    checkpoints: Checkpoints
    log: Log
    key: PRNGKey
    frozen: Any
    items: dict[str, Any]
    evaluate: Callable[[int, Any], dict[str, float]]
    report: Callable[[], None]
    step: Callable

    def go(self, state: State, record: LossRecord) -> Any:
        """Trains to the end and returns the weights; Fault where numbers are bad."""
        train, first, alone = self.train, int(state.step), jax.process_count() == 1
        if unevaluated(train, self.checkpoints, self.log.folder):
            self.log.write(
                first, self.evaluate(first, jax.device_get(self._weights(state))), HELD_OUT
            )
        state, unseen, stop, weights = self.parallel.place(state), None, False, None
        meter = Meter(self.cost, self.log, first)
        with (
            signals.noted() as asked,
            bar(train.steps, first, self.name) as progress,
            Watchdog(self.guard.hang, self.guard.hang_seconds, self.name) as watchdog,
            self.profile.tracer(self.log.folder / "profile", first, train.steps) as trace,
            contextlib.closing(self._batches(first, record)) as batches,
        ):
            for step in range(first + 1, train.steps + 1):
                with meter.waiting():
                    batch = next(batches) | ({} if alone else self._stopping(asked()))
                    batch = self.parallel.shard(batch)
                state, values = trace(step, self.step, state, self.frozen, batch, self.key)
                values = self.parallel.first(values)
                stop = unseen is not None and self._see(
                    *unseen, record
                )  # one step behind, so that the device need not wait
                stop = stop or alone and asked()
                unseen = step, values
                watchdog.beat()
                logs, evaluates, saves = (
                    train.due(step, every)
                    for every in (train.log_every, train.evaluate_every, train.save_every)
                )
                if stop or logs or evaluates or saves:
                    stop, unseen = self._see(*unseen, record) or stop, None
                meter.step()
                if logs:
                    means = record.means()
                    self.log.write(
                        step,
                        means | meter.rates(step) | {"examples": step * train.batch_size},
                        "train/",
                    )
                    progress.update(0, loss=means["loss"])
                progress.update()
                if stop or evaluates or saves:
                    watchdog.rest()
                    if stop:
                        signals.acknowledge()
                    weights = self._save(step, state, record, write=saves or stop)
                    if evaluates and not stop:
                        weights = self.parallel.host(weights)
                        stop = self._evaluate(step, weights)
                        if stop and not saves:
                            self._save(step, state, record, write=True)
                    if stop:
                        self.checkpoints.wait()
                        distributed.barrier()  # for the one that writes
                        signals.end()
                    self.report()
                    meter.pause()
        self.checkpoints.wait()
        return weights if weights is not None else widen(self.checkpoints.restore("weights"))

    def _batches(self, first: int, record: LossRecord) -> Iterator[dict[str, np.ndarray]]:
        """Those of the steps after `first`."""
        at = record.batch(first + 1)
        with self.loader.iterate(at) as batches:
            for step in range(first + 1, self.train.steps + 1):
                for _ in range(at, record.batch(step)):
                    next(batches)
                at = record.batch(step) + 1
                yield next(batches)

    def _stopping(self, asked: bool) -> dict[str, np.ndarray]:
        """What tells the other processes, with a batch, that one of them was told to end."""
        return {STOPPING: np.full(self.train.batch_size // jax.process_count(), asked, np.float32)}

    def _see(self, step: int, values: dict[str, Any], record: LossRecord) -> bool:
        """Checks and records the metrics of a step; True if a process was told to end."""
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        stopping = numbers.pop(STOPPING, 0.0)
        watched = numbers[self.stage.watched]
        self.guard.check(step, numbers, watched, record.losses)
        record.add(numbers, watched)
        return stopping > 0

    def _weights(self, state: State) -> Any:
        return self.stage.weights_of(state.params if state.ema is None else state.ema, state.extra)

    def _save(self, step: int, state: State, record: LossRecord, *, write: bool) -> Any:
        """The weights, where they are; with `write` they and the state become a checkpoint."""
        here = self.parallel.first(state)
        weights = self._weights(here)
        if not _finite(weights):
            raise Fault(step, "weights that are not finite")
        if write:
            stored = {
                "step": here.step,
                "params": here.params,
                "opt_state": here.opt_state,
                "extra": here.extra,
            }
            self.checkpoints.save(
                step, {"state": stored, "weights": weights, "record": record.stored()} | self.items
            )
        return weights

    def _evaluate(self, step: int, weights: Any) -> bool:
        """True if a signal came between, which several processes have to agree upon first."""
        try:
            with signals.interruptible() if jax.process_count() == 1 else contextlib.nullcontext():
                self.log.write(step, self.evaluate(step, weights), HELD_OUT)
        except signals.ENDINGS:
            return True
        return False


@jax.jit
def _finite(tree: Any) -> Any:
    """Whether all numbers are."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _described(loader: Loader, batch: int, describe: Callable[[Any], str]) -> str:
    """A batch, and its first examples."""
    places = range(batch * loader.batch_size, (batch + 1) * loader.batch_size)
    shown = [describe(loader.items[loader.index(place)]) for place in places[:4]] + ["…"] * (
        len(places) > 4
    )
    return f"batch {batch} ({', '.join(shown)})"


def _record(checkpoints: Checkpoints) -> LossRecord:
    return LossRecord.of(
        checkpoints.restore("record")
        if checkpoints.latest_step() is not None and checkpoints.has("record")
        else None
    )


def _restore_or_init(
    name: str,
    stage: Any,
    optimizer: Any,
    train: Train,
    loader: Loader,
    checkpoints: Checkpoints,
    key: PRNGKey,
    init_from: Callable[[Any], Any] | None,
) -> State:
    batch = loader.whole(
        0
    )  # the codes of a codebook start on it, in every process on the same ones
    fresh = lambda params, extra: State(
        step=np.zeros((), np.int32),
        params=params,
        extra=extra,
        ema=jax.tree.map(np.array, params) if train.ema else None,
        opt_state=optimizer.init(params),
    )
    params, extra = jax.jit(stage.init)(key, batch)
    if checkpoints.latest_step() is None:
        return fresh(init_from(params) if init_from else params, extra)
    if not checkpoints.has("state"):
        print(
            f"{name}: {checkpoints.folder} holds weights only; the optimizer and its averages "
            "start anew",
            flush=True,
        )
        what = f"the weights in {checkpoints.folder}"
        stored = fit(widen(checkpoints.restore("weights")), stage.weights_of(params, extra), what)
        return fresh(*stage.from_weights(stored)).replace(step=np.int32(checkpoints.latest_step()))
    like = fresh(params, extra)
    stored = checkpoints.restore(
        "state",
        like={
            "step": like.step,
            "params": like.params,
            "opt_state": like.opt_state,
            "extra": like.extra,
        },
    )
    ema = (
        None
        if like.ema is None
        else checkpoints.restore("weights", like=stage.weights_of(like.ema, extra))
    )
    return State(ema=ema, **stored)
