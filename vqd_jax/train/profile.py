"""A profiler trace of a few training steps: the time of each operation, and what the host did."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vqd_jax.core.errors import UserError

WARM_UP = 10  # steps before the traced ones; the first compiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Attributes:
    steps: how many to trace, each time that a stage starts or resumes; 0 for none.
    """

    steps: int

    def __post_init__(self):
        if self.steps < 0:
            raise UserError(
                "profile.steps must be 0 for none or the number of steps to trace, got "
                f"{self.steps}"
            )

    @contextlib.contextmanager
    def tracer(self, folder: Path, first: int, last: int) -> Iterator[Callable[..., Any]]:
        """Yields `trace(step, f, *args)`, which returns f(*args) and traces some of the steps
        first + 1 to last into `folder`.

        They follow a warm-up, which is shorter if few steps are left.
        """
        start = max(first + 1, min(first + 1 + WARM_UP, last + 1 - self.steps))
        steps, traced = range(start, min(start + self.steps, last + 1)), []

        def stop() -> None:
            jax.profiler.stop_trace()
            print(
                f"\ntrace of steps {traced[0]} to {traced[-1]}: tensorboard --logdir={folder} "
                "(pip install tensorboard xprof), or open the *.trace.json.gz in it with "
                "https://ui.perfetto.dev",
                flush=True,
            )
            traced.clear()

        def trace(step: int, f: Callable[..., Any], *args: Any) -> Any:
            if step not in steps:
                return f(*args)
            if not traced:
                jax.profiler.start_trace(folder)
            traced.append(step)
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                out = f(*args)
            if step == steps[-1]:
                jax.block_until_ready(out)
                stop()
            return out

        try:
            yield trace
        finally:
            if traced:  # the run ended during the trace
                stop()
