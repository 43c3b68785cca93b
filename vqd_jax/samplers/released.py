"""The samplers of the released PyTorch code beside its ancestral one, to reproduce old results. New
work wants others.

`ReleasedFast` strides in time but undoes one step of noise per call, so much is still masked at the
last call, which has to decide it at once (a quarter of all tokens at stride 4). `PriorRule` is the
improved paper's high-quality inference.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.posterior import branches
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.ancestral import ancestral_phase, take_branch
from vqd_jax.samplers.base import (
    Phase,
    even_times,
    forward_noised,
    noise,
    sample_loop,
    start_of_process,
)
from vqd_jax.samplers.categorical import sample_categorical, uniforms

# of the released code for 1024 tokens: calls -> tokens revealed at t = 1, 2, ... T (times in this
# package's count)
BUDGETS = {
    100: (1, 10, *(11, 10, 10) * 32, 11, 11),
    50: (10, *(21, 20) * 24, 30),
    25: (21, *(41,) * 23, 60),
    10: (69, *(102,) * 8, 139),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasedFast:
    """`sample_fast` of the released code: with T = 100, its "fast2", 3, 4, 5, 10 have 51, 34, 26,
    21, 11 calls.

    A number of calls that no stride has gets times as even as possible, by the same rule.
    """

    calls: int

    __call__ = sample_loop
    start = staticmethod(start_of_process)
    noised = staticmethod(forward_noised)

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        if not 1 <= self.calls <= t_start:
            raise UserError(f"calls must be in 1..{t_start}, got {self.calls}")
        for stride in range(1, t_start + 1):
            told = np.arange(t_start, 0, -stride)
            told = told if told[-1] == 1 else np.append(told, 1)
            if len(told) == self.calls:
                undone = np.where(told > stride, told - stride + 1, told)
                break
        else:
            told = np.round(np.linspace(t_start, 1, self.calls)).astype(int)
            undone = np.append(told[1:] + 1, 1)
        return [
            Phase(
                update=take_branch,
                times=told.astype(np.int32),
                numbers=branches(process, undone - 1, undone),
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorRule:
    """Reveals a budget of tokens at each time, and the rest by an ordinary step at t = 1.

    Attributes:
      calls: times; the budgets are the released ones for 1024 tokens and 100, 50, 25 or 10 times,
      in proportion otherwise.
      rule: 1 draws the positions evenly, 2 in proportion to purity, the largest p of each.
      weight: of rule 2: sharpens p by 1 + weight * purity.
      per_call: at most that many tokens are revealed by a network call (`prior_ps`), so a time may
      take several.
    """

    calls: int
    rule: int = 2
    weight: float = 0.0
    per_call: int = 1024

    __call__ = sample_loop
    start = staticmethod(start_of_process)
    noised = staticmethod(forward_noised)

    def __post_init__(self):
        if self.rule not in (1, 2) or self.per_call < 1 or self.weight < 0:
            raise UserError(
                "prior_rule needs a rule of 1 or 2, per_call >= 1 and weight >= 0, got "
                f"rule={self.rule}, "
                f"per_call={self.per_call}, weight={self.weight}"
            )

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        told = even_times(t_start, self.calls)[:-1]
        times, counts = [], []
        for t, budget in zip(told[:-1], self.budgets(n)[:0:-1]):
            while budget > 0:
                now = min(budget, self.per_call)
                now = budget if budget - now == 1 else now
                times.append(t)
                counts.append(now)
                budget -= now
        reveal = Phase(
            update=self.reveal, times=np.array(times, np.int32), numbers=np.array(counts, np.int32)
        )
        return [reveal, ancestral_phase(process, np.array([told[-1], 0]))]

    def budgets(self, n: int) -> tuple[int, ...]:
        """Tokens to reveal at each time, from the last time to the first."""
        if n == 1024 and self.calls in BUDGETS:
            if self.calls == 100 and self.per_call <= 10:
                return (1, 6, *BUDGETS[100][2:-1], 15)
            return BUDGETS[self.calls]
        return tuple(np.diff(np.round(np.linspace(0, n, self.calls + 1)).astype(int)).tolist())

    def reveal(
        self,
        keys: PRNGKeys,
        place: Any,
        process: MaskAndReplace,
        logits: Logits,
        z: Tokens,
        count: Any,
    ) -> Tokens:
        """Codes for `count` of the masked positions, drawn without replacement."""
        n, masked = z.shape[1], z == process.k
        floats, order = noise(keys, place, 2)
        log_p, score = jax.nn.log_softmax(logits), jnp.ones(z.shape, logits.dtype)
        if self.rule == 2:
            purity = jnp.exp(log_p.max(-1))
            score = purity / (purity.max(-1, keepdims=True) + 1e-10)
            if self.weight:
                log_p = jnp.maximum(
                    jax.nn.log_softmax((1 + self.weight * score)[..., None] * log_p), -70
                )
        code, _, _ = sample_categorical(uniforms(floats, n, 2, logits.dtype), log_p)
        gumbel = jax.vmap(functools.partial(jax.random.gumbel, shape=(n,), dtype=jnp.float32))(
            order
        )
        rank = jnp.argsort(
            jnp.argsort(jnp.where(masked, -(jnp.log(score) + gumbel), jnp.inf), axis=-1), axis=-1
        )
        return jnp.where(masked & (rank < count), code, z)
