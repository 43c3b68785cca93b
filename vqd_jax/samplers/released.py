"""The other samplers of the released PyTorch code, to reproduce old results.

`ReleasedFast` strides in time but reverses one step of noise per call, so much is still masked at
the last call, which decides it at once (a quarter of all tokens at stride 4). `PriorRule` is the
high-quality and purity sampling of Improved VQ-Diffusion.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.posterior import posterior_coefficients
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.ancestral import posterior_phase, posterior_step
from vqd_jax.samplers.base import CallIndex, Phase, Sampler, even_times, noise_keys
from vqd_jax.samplers.categorical import sample_categorical, uniforms
from vqd_jax.samplers.groups import reveal_ranks

# Tokens that the released code reveals at t = 1, 2, ..., T of 1024, by the number of times
BUDGETS = {
    100: (1, 10, *(11, 10, 10) * 32, 11, 11),
    50: (10, *(21, 20) * 24, 30),
    25: (21, *(41,) * 23, 60),
    10: (69, *(102,) * 8, 139),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasedFast(Sampler):
    """`sample_fast` of the released code: with T = 100, its "fast2", 3, 4, 5 and 10 make 51, 34,
    26, 21 and 11 calls.

    Other numbers of calls get times as evenly spaced as possible, by the same rule. Each token is
    drawn by itself: of several at a position any may come first.
    """

    calls: int

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        if not 1 <= self.calls <= t_start:
            raise UserError(f"calls must be in 1..{t_start}, got {self.calls}")
        for stride in range(1, t_start + 1):
            times = np.arange(t_start, 0, -stride)
            times = times if times[-1] == 1 else np.append(times, 1)
            if len(times) == self.calls:
                reversed_at = np.where(times > stride, times - stride + 1, times)
                break
        else:
            times = np.round(np.linspace(t_start, 1, self.calls)).astype(int)
            reversed_at = np.append(times[1:] + 1, 1)
        coefficients = posterior_coefficients(process, reversed_at - 1, reversed_at)
        return [Phase(posterior_step, times.astype(np.int32), coefficients)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorRule(Sampler):
    """Reveals a budget of tokens at each time, and the rest by an ordinary step at t = 1.

    Attributes:
      calls: times. The budgets are the released ones for 1024 tokens and 100, 50, 25 or 10 times,
        and equal otherwise.
      rule: 1 draws the positions evenly, 2 in proportion to purity, the largest p of each position.
      weight: of rule 2: sharpens p to the power 1 + weight * purity.
      per_call: the most tokens that a network call reveals (`prior_ps`); a time may take several
        calls.
      groups: tokens of each position. A coarse one comes before the finer ones of its position:
        with rule 1 they change places, with rule 2 the finer ones wait, as in `Counts`.
    """

    calls: int
    rule: int = 2
    weight: float = 0.0
    per_call: int = 1024
    groups: int = 1

    def __post_init__(self):
        if self.rule not in (1, 2) or self.per_call < 1 or self.weight < 0:
            raise UserError(
                "prior_rule needs a rule of 1 or 2, per_call >= 1 and weight >= 0, got "
                f"rule={self.rule}, per_call={self.per_call}, weight={self.weight}"
            )

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        grid = even_times(t_start, self.calls)[:-1]
        times, counts = [], []
        for t, budget in zip(grid[:-1], self.budgets(n)[:0:-1]):
            while budget > 0:
                count = min(budget, self.per_call)
                count = budget if budget - count == 1 else count
                times.append(t)
                counts.append(count)
                budget -= count
        reveal = Phase(self.reveal, np.array(times, np.int32), np.array(counts, np.int32))
        return [reveal, posterior_phase(process, np.array([grid[-1], 0]))]

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
        call: CallIndex,
        process: MaskAndReplace,
        logits: Logits,
        z: Tokens,
        count: Int[Array, ""],
    ) -> Tokens:
        """Codes at `count` of the masked tokens, drawn without replacement.

        `logits` are log p(x_0) as `samplers.base.sample_loop` describes them. As in the released
        code, purity is not renormalised after truncation.
        """
        n, masked = z.shape[1], z == process.k
        float_keys, order_keys = noise_keys(keys, call, 2)
        score = jnp.ones(z.shape, logits.dtype)
        if self.rule == 2:
            purity = jnp.exp(logits.max(-1))
            score = purity / (purity.max(-1, keepdims=True) + 1e-10)
        if self.rule == 2 and self.weight:
            sharpened = jax.nn.log_softmax((1 + self.weight * score)[..., None] * logits)
            logits = jnp.maximum(sharpened, -70)  # the floor of the released code
        code, _, _ = sample_categorical(uniforms(float_keys, n, 2, logits.dtype), logits)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (n,), jnp.float32))(order_keys)
        weight = jnp.log(score) + gumbel
        rank = reveal_ranks(weight, masked, self.groups, adaptive=self.rule == 2)
        return jnp.where(masked & (rank < count), code, z)
