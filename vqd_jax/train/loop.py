"""The training loop of every stage: restore or init, then step, check, log, evaluate, save.

Lengths and intervals are in examples seen.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jaxtyping import Array, Bool

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.data.loader import Batch, Loader
from vqd_jax.eval.validation import is_better
from vqd_jax.runtime import distributed, signals
from vqd_jax.runtime.checkpoint import Best, Checkpoints
from vqd_jax.runtime.hardware import describe_machine
from vqd_jax.runtime.log import Log, read_metrics
from vqd_jax.runtime.parallel import Parallelism
from vqd_jax.runtime.progress import bar
from vqd_jax.runtime.workdir import StageFolder
from vqd_jax.train.cost.flops import of_step
from vqd_jax.train.guard import Fault, Guard, TrainingRecord, Watchdog
from vqd_jax.train.meter import Cost, Meter
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.resume import stored_record
from vqd_jax.train.stage import Stage
from vqd_jax.train.state import State, StateStore
from vqd_jax.train.step import REQUESTS, SAVING, STOPPING, default_micro_batches, make_step

HELD_OUT = "held_out/"  # prefix of an evaluation's metrics in the log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Lengths and intervals of a stage's training, in examples.

    Attributes:
      examples: length of the stage.
      batch_size: of all devices together.
      accumulate: micro-batches of a batch, whose gradients are computed one after the other; 0
        chooses their number by `train.step.default_micro_batches`.
      ema: decay of the moving average of the weights; 0 for none.
      log_every, evaluate_every, save_every: intervals.
      save_minutes: the longest time between saves, in minutes of the clock; 0 for none.
      keep: how many checkpoints to keep, beside the best one.
      best: the measure of the evaluations (`eval.validation.BETTER`) by which the best checkpoint
        is chosen; "" keeps none.
      pace: of a run that is resumed with another batch size; None for one of this size only.
    """

    examples: int
    batch_size: int
    accumulate: int
    ema: float
    log_every: int
    evaluate_every: int
    save_every: int
    save_minutes: float
    keep: int
    best: str = ""
    pace: Pace | None = None

    def __post_init__(self):
        intervals = self.log_every, self.evaluate_every, self.save_every
        if min(self.examples, self.batch_size, *intervals) < 1 or self.accumulate < 0:
            raise UserError(
                "examples, batch_size and the intervals of a training section must be positive, "
                "accumulate at least 0"
            )
        if not self.save_minutes >= 0:
            raise UserError(f"save_minutes must not be negative, got {self.save_minutes:g}")

    def micro_batches(self, devices: int, positions: int) -> int:
        """Micro-batches of each of the devices, for examples of so many positions."""
        return self.accumulate or default_micro_batches(self.batch_size // devices, positions)

    @property
    def steps(self) -> int:
        """The number of the last step."""
        return self.since.last_step(self.examples)

    @property
    def since(self) -> Pace:
        return self.pace or Pace(self.batch_size)

    def due(self, step: int, every: int) -> bool:
        """Whether something done `every` so many examples is due after this step; everything is
        after the last one.
        """
        return step % max(every // self.batch_size, 1) == 0 or step >= self.steps

    def overdue(self, saved: float) -> bool:
        """Whether the last save, at `saved` of `time.monotonic`, is `save_minutes` ago or more."""
        return self.save_minutes > 0 and time.monotonic() - saved >= 60 * self.save_minutes


@dataclasses.dataclass(frozen=True)
class Rollback:
    """A fault, the checkpoint that training went back to, and the batches it then skips."""

    checkpoint: int
    step: int
    cause: str
    batches: list[int]
    spike: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains one stage up to `train.steps`: `Trainer(...).run()`. Every process runs one.

    Attributes:
      name: of the stage, for messages.
      key: root of all randomness of the stage.
      frozen: parameters that the loss uses and training leaves alone.
      items: what checkpoints hold besides state, weights and record (config, tokenizer).
      evaluate: `(step, weights) -> metrics`; it may write images.
      init_from: maps fresh parameters to those that training starts from.
      refresh: called before checkpoints are read again, after which every process must have the
        latest.
      report: called after evaluations and saves, once they are in the log.
      describe: names an item of the loader in messages.
    """

    name: str
    stage: Stage
    train: Train
    optim: Optim
    guard: Guard
    profile: Profile
    loader: Loader
    parallel: Parallelism
    checkpoints: Checkpoints
    log: Log
    key: PRNGKey
    frozen: Params
    items: dict[str, Any]
    evaluate: Callable[[int, Params], Mapping[str, SupportsFloat]]
    init_from: Callable[[Params], Params] | None = None
    refresh: Callable[[], None] = lambda: None
    report: Callable[[], None] = lambda: None
    describe: Callable[[Any], str] = str

    def run(self) -> None:
        """Trains to the end. UserError after `guard.tries` faults in a row."""
        self.parallel.check_batch(self.train.batch_size, self.micro_batches)
        rollbacks: list[Rollback] = []  # since the last checkpoint
        while True:
            try:
                return self._train(rollbacks)
            except Fault as fault:
                rollbacks = self._roll_back(fault, rollbacks)

    def _train(self, rollbacks: list[Rollback]) -> None:
        """Trains from the latest checkpoint to the end. Fault at bad numbers."""
        # ---------------------------- Restore or init -----------------------------
        train, alone = self.train, jax.process_count() == 1
        batch = self.loader.global_batch(0)
        state = self._store.restore_or_init(self._keys[0], batch)
        record, first = self._restore_record(rollbacks), int(self.parallel.to_host(state.step))
        if not rollbacks:
            self._announce(batch)
        self._resume_log(first, rollbacks)
        best = self._restore_best(first)
        if unevaluated(train, self.checkpoints, self.log.folder):
            values = self.evaluate(first, self.parallel.to_host(self._store.weights(state)))
            best = self._record_evaluation(first, values, self._better(first, values, best)) or best
        pending = None  # metrics of the last step, not yet checked
        meter, saved = Meter(self.cost, self.log, first), time.monotonic()
        with (
            signals.deferred() as signalled,
            bar(train.steps, first, self.name) as progress,
            Watchdog(self.guard.hang, self.guard.hang_seconds, self.name) as watchdog,
            self.profile.tracer(self._folder.profile, first, train.steps) as trace,
            contextlib.closing(self._batches(first, record)) as batches,
        ):
            own = lambda: {STOPPING: signalled(), SAVING: train.overdue(saved)}
            for step in range(first + 1, train.steps + 1):
                # ------------------------------ Step ------------------------------
                with meter.waiting():
                    batch = next(batches)
                    if not alone:
                        batch |= self._requests(own())
                    batch = self.parallel.shard(batch)
                state, metrics = trace(step, self._step, state, self._frozen, batch, self._keys[1])
                metrics = self.parallel.unreplicate(metrics)

                # -------- Check, one step behind, so that the device need not wait --------
                asked = self._check(*pending, record) if pending else set()
                if alone:
                    asked |= {name for name, wanted in own().items() if wanted}
                pending = step, metrics
                watchdog.step()
                logs = train.due(step, train.log_every)
                evaluates = train.due(step, train.evaluate_every)
                saves = train.due(step, train.save_every)
                if asked or logs or evaluates or saves:
                    asked |= self._check(*pending, record)
                    pending = None
                stop, saves = STOPPING in asked, saves or bool(asked)

                # ------------------------------ Log -------------------------------
                meter.step()
                if logs:
                    means = record.pop_means()
                    rates = meter.rates(step) | {"examples": train.since.examples_at(step)}
                    self.log.write(step, means | rates, "train/")
                    progress.update(0, loss=means["loss"])
                progress.update()

                # ----------------------- Save and evaluate ------------------------
                if not (evaluates or saves):
                    continue
                watchdog.pause()
                if stop:
                    signals.acknowledge()
                self._check_weights(step, state)
                if saves:
                    self._save(step, state, record)
                    saved = time.monotonic()
                if evaluates and not stop:
                    values = self._evaluate(step, state)
                    stop = values is None
                    better = self._better(step, values, best)
                    if (stop or better) and not saves:
                        self._save(step, state, record)
                    if not stop:
                        best = self._record_evaluation(step, values, better) or best
                if stop:
                    self.checkpoints.wait()
                    distributed.barrier()  # until process 0 has written
                    signals.interrupt()
                self.report()
                meter.pause()
        self.checkpoints.wait()

    # What is built once.

    @functools.cached_property
    def micro_batches(self) -> int:
        return self.train.micro_batches(self.parallel.device_count, self.stage.positions)

    @functools.cached_property
    def cost(self) -> Cost:
        """What a step computes, on all devices together."""
        replicas = self.parallel.replicas
        rows = self.train.batch_size // replicas
        return Cost(
            flops=replicas * of_step(self.stage, self.frozen, self.loader.example(0), rows),
            examples=self.train.batch_size,
            devices=self.parallel.device_count,
            kind=jax.local_devices()[0].device_kind,
        )

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        return self.optim.build(
            self.train.examples, self.train.since, self.stage.unchanged, self.stage.dtype
        )

    @functools.cached_property
    def _store(self) -> StateStore:
        return StateStore(
            name=self.name,
            stage=self.stage,
            optimizer=self._optimizer,
            checkpoints=self.checkpoints,
            parallel=self.parallel,
            ema=self.train.ema > 0,
            init_from=self.init_from,
        )

    @functools.cached_property
    def _step(self) -> Callable[..., tuple[Any, dict[str, Any]]]:
        return self.parallel.compile(
            make_step(self.stage, self._optimizer, self.train.ema, self.micro_batches)
        )

    @functools.cached_property
    def _frozen(self) -> Params:
        return self.parallel.device_put(self.frozen)

    @property
    def _folder(self) -> StageFolder:
        return StageFolder(self.log.folder)

    @functools.cached_property
    def _keys(self) -> tuple[PRNGKey, PRNGKey]:
        """For the first parameters, and for the steps."""
        init_key, step_key = jax.random.split(self.key)
        return init_key, step_key

    # Start and restart.

    def _restore_record(self, rollbacks: list[Rollback]) -> TrainingRecord:
        record = stored_record(self.name, self.checkpoints, self.train.batch_size)
        if record.pace != self.train.since:
            raise UserError(
                f"{self.name}: the latest checkpoint is damaged, and the batch size has changed "
                "since the one before it: start the same command again"
            )
        for rollback in rollbacks:
            record.skip(rollback.batches)
            if rollback.spike:  # healthy losses may have such a tail
                record.peak *= self.guard.spike
        return record

    def _restore_best(self, first: int) -> Best | None:
        """The best checkpoint so far, by the measure that is asked for now."""
        stored = self.checkpoints.best() if jax.process_index() == 0 else None
        stored = distributed.broadcast_json(stored and dataclasses.asdict(stored))
        best = Best(**stored) if stored else None
        if best is None or best.measure != self.train.best or best.step > first:
            return None  # a later one is damaged, and training is going to make it again
        return best

    def _announce(self, batch: Batch) -> None:
        shapes, _ = jax.eval_shape(self.stage.init, self._keys[0], batch)
        overview = parameter_overview.get_parameter_overview(shapes, include_stats=False)
        path = self.log.write_parameters(overview)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        print(f"{self.name}: {count:,} parameters, listed in {path}", flush=True)
        print(f"{self.name}: {self.cost.text}", flush=True)
        facts = {"devices": self.cost.devices, "flops_per_step": self.cost.flops}
        self.log.write_machine(describe_machine() | facts)

    def _resume_log(self, first: int, rollbacks: list[Rollback]) -> None:
        """Removes lines after the step `first`, and notes why training went back to it."""
        self.log.rewind(first)
        for fault in rollbacks:
            values = {
                "step": fault.step,
                "first_batch": fault.batches[0],
                "batches": len(fault.batches),
            }
            self.log.write(first + 1, values, "fault/")
        print(
            f"{self.name}: {first} of {self.train.steps} steps of {self.train.batch_size} done"
            f"{self._seen(first)}, on "
            f"{self.parallel.description}; checkpoints in {self.checkpoints.folder}",
            flush=True,
        )

    def _seen(self, first: int) -> str:
        """The examples so far, where they do not follow from steps and batch size."""
        seen = self.train.since.examples_at(first)
        if seen == first * self.train.batch_size:
            return ""
        return f" ({seen} of {self.train.examples} examples seen)"

    def _roll_back(self, fault: Fault, rollbacks: list[Rollback]) -> list[Rollback]:
        """All rollbacks to the latest checkpoint, with one for this fault. UserError if they are
        too many.
        """
        self.checkpoints.wait()
        self.refresh()
        checkpoint = self.checkpoints.latest_step() or 0
        before = [r for r in rollbacks if r.checkpoint == checkpoint]
        record = self._restore_record(before)
        step = max(fault.step, checkpoint + 1)  # high losses may have begun before
        batches = record.last_batches(checkpoint, step, 2 ** len(before))
        cause = f"{fault} in step {step}, with {self._describe_batch(batches[-1])}"
        if len(before) == self.guard.tries:
            raise UserError(
                f"{self.name}: {len(before) + 1} faults in a row since step {checkpoint}: "
                f"{'; '.join([*(r.cause for r in before), cause])}; the checkpoints in "
                f"{self.checkpoints.folder} are unharmed: try a lower learning rate, or look at "
                "these examples"
            ) from None
        skipped = f"batch {batches[0]}"
        if len(batches) > 1:
            skipped = f"batches {batches[0]} to {batches[-1]}"
        print(f"\n{self.name}: {cause}: back to step {checkpoint}, without {skipped}", flush=True)
        return [*before, Rollback(checkpoint, step, cause, batches, fault.spike)]

    def _describe_batch(self, batch: int) -> str:
        """Its number and its first examples."""
        positions = self.loader.positions(batch)
        shown = [self.describe(self.loader.items[self.loader.index(p)]) for p in positions[:4]]
        if len(positions) > 4:
            shown.append("…")
        return f"batch {batch} ({', '.join(shown)})"

    # What the loop does.

    def _batches(self, first: int, record: TrainingRecord) -> Iterator[Batch]:
        """The batches of the steps after `first`."""
        at = record.batch(first + 1)
        with self.loader.iterate(at) as batches:
            for step in range(first + 1, self.train.steps + 1):
                for _ in range(at, record.batch(step)):
                    next(batches)
                at = record.batch(step) + 1
                yield next(batches)

    def _requests(self, own: Mapping[str, bool]) -> Batch:
        """Tells the other processes, as part of a batch, what this one asks for."""
        rows = self.train.batch_size // jax.process_count()
        return {name: np.full(rows, wanted, np.float32) for name, wanted in own.items()}

    def _check(self, step: int, metrics: dict[str, Array], record: TrainingRecord) -> set[str]:
        """Checks and records the metrics of a step; returns what any of the processes asked for."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        asked = {name for name in REQUESTS if values.pop(name, 0.0) > 0}
        watched = values[self.stage.watched]
        self.guard.check(step, values, watched, record)
        record.add(values, watched)
        return asked

    def _check_weights(self, step: int, state: State) -> None:
        """Fault if the weights are not finite."""
        if not _all_finite(self.parallel.local(self._store.weights(state))):
            raise Fault(step, "weights that are not finite")

    def _save(self, step: int, state: State, record: TrainingRecord) -> None:
        with signals.saving():
            own = self._store.items(state) | {"record": record.to_json()}
            self.checkpoints.save(step, own | self.items)

    def _evaluate(self, step: int, state: State) -> Mapping[str, SupportsFloat] | None:
        """The measures; None if a signal came meanwhile. With several processes it is only noted,
        as they have to agree upon it first.
        """
        interruptible = contextlib.nullcontext()
        if jax.process_count() == 1:
            interruptible = signals.interruptible()
        try:
            with interruptible:
                return self.evaluate(step, self.parallel.to_host(self._store.weights(state)))
        except signals.INTERRUPTS:
            return None

    def _better(
        self, step: int, values: Mapping[str, SupportsFloat] | None, best: Best | None
    ) -> Best | None:
        """The step as the best one, if its evaluation is better than that of `best`."""
        measure = self.train.best
        if not measure or values is None:
            return None
        if measure not in values:
            raise UserError(
                f"{self.name}: the best checkpoint is chosen by {measure}, and the evaluation has "
                f"only {', '.join(values) or 'no images'}"
            )
        value = distributed.broadcast_json(float(values[measure]))  # the processes have to agree
        if is_better(measure, value, None if best is None else best.value):
            return Best(step=step, measure=measure, value=value)
        return None

    def _record_evaluation(
        self, step: int, values: Mapping[str, SupportsFloat], better: Best | None
    ) -> Best | None:
        """Marks the step, which is saved, if it is `better`, and then logs its evaluation; returns
        `better`. After a kill in between the step is evaluated again.
        """
        if better:
            self.checkpoints.mark_best(better)
        # one line of the log says that there was an evaluation, even of no examples
        images = self._folder.images_of(step)
        self.log.write(step, values or {"examples": 0}, HELD_OUT, images)
        return better


def unevaluated(train: Train, checkpoints: Checkpoints, folder: Path) -> bool:
    """Whether training ended after it saved the latest checkpoint and before it evaluated it.
    `folder` has the log. Collective.
    """
    step = checkpoints.latest_step()
    due = step is not None and train.due(step, train.evaluate_every) and checkpoints.has("record")
    with contextlib.suppress(UserError):  # no log yet
        due = due and not any(
            row["step"] == step and any(key.startswith(HELD_OUT) for key in row)
            for row in read_metrics(folder)
        )
    return distributed.broadcast_flag(due)


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
