"""Reveal an exact number of tokens at each call and keep them.

In random order this samples the model that ancestral sampling of the `absorbing` process samples,
without its coin flips; other orders choose which tokens come first (Chang et al. 2022; Tang et al.
2022; Besnier et al. 2025).

Where the schedule replaces tokens (`paper`, `hybrid`), the network expects that some of the codes
it sees are random. Here none are: it trusts the revealed tokens less than they deserve, and the
samples are not exactly those of its model, even at one token a call. `polish` repairs most of that.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.ancestral import posterior_phase
from vqd_jax.samplers.base import (
    CallIndex,
    Phase,
    Sampler,
    all_masked,
    even_times,
    masked_at,
    masked_count,
    noise_keys,
    sample_prior,
)
from vqd_jax.samplers.call_planner import best_counts, reveal_cost
from vqd_jax.samplers.categorical import sample_categorical, uniforms
from vqd_jax.samplers.groups import reveal_ranks

ORDERS = ("random", "confidence", "purity", "halton")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts(Sampler):
    """Reveals tokens in an order, a fixed number at each call.

    Attributes:
      calls: network calls, those of `polish` included.
      order: "random"; "confidence", log p of the drawn code plus noise that falls to 0; "purity",
        positions drawn in proportion to their largest p; "halton", a fixed low-discrepancy order,
        rolled for each image; or a tuple of all n tokens.
      counts: tokens per call: "uniform", "cosine" (few at first), or a tuple of calls - polish
        numbers. Their sum is `total`.
      noise: of "confidence": Gumbel noise times noise * (1 - j / calls).
      polish: the number of calls at the end that are exact ancestral steps, which replace wrong
        tokens too.
      polish_from: the time at which `polish` starts, as a share of the start time.
      origin: the start state: "masked" (every token) or "process" (z_T, where the schedule leaves
        some random codes; without `polish` those are never drawn again).
      groups: tokens of each position. In every order a coarse one comes before the finer ones of
        its position: "halton" has all tokens of a group before those of the next; "random" and
        tuples change places within a position; with "confidence" and "purity" a token waits until
        the coarser ones are known, unless a call reveals more tokens than there are others.
    """

    calls: int
    order: str | tuple[int, ...] = "random"
    counts: str | tuple[int, ...] = "uniform"
    noise: float = 4.5
    polish: int = 0
    polish_from: float = 0.25
    origin: str = "masked"
    groups: int = 1

    def __post_init__(self):
        if isinstance(self.order, str) and self.order not in ORDERS:
            raise UserError(
                f"the order of counts must be one of {', '.join(ORDERS)}, got {self.order!r}"
            )
        if isinstance(self.counts, str) and self.counts not in ("uniform", "cosine"):
            raise UserError(
                f"counts must be uniform, cosine or a list of numbers, got {self.counts!r}"
            )
        if self.origin not in ("masked", "process"):
            raise UserError(f"the origin of counts must be masked or process, got {self.origin!r}")
        if not 0 <= self.polish < max(self.calls, 1) or not 0 < self.polish_from < 1:
            raise UserError(
                "counts needs 0 <= polish < calls and polish_from in (0, 1), got "
                f"polish={self.polish}, calls={self.calls}, polish_from={self.polish_from}"
            )

    def start(self, keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
        return (all_masked if self.origin == "masked" else sample_prior)(keys, process, n)

    def noised(self, keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens:
        return masked_at(keys, process, z_0, t, self.groups)

    def planned(
        self,
        process: MaskAndReplace,
        entropy: Float[np.ndarray, " n"] | Float[np.ndarray, "n n"],
        t_start: int,
    ) -> "Counts":
        """This sampler with the counts that lose the least information.

        `entropy` is what `vqd plan` measured for the order, see `call_planner`. The counts cover
        the tokens that are [MASK] at `t_start`, except those left to `polish`.
        """
        first, last = self._revealed(process, len(entropy), t_start)
        self._check_calls(last - first)
        cost = reveal_cost(entropy)[first:last, first : last + 1]
        return dataclasses.replace(self, counts=best_counts(cost, self.calls - self.polish)[0])

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        if not isinstance(self.order, str) and sorted(self.order) != list(range(n)):
            raise UserError(f"an order must name each of the {n} tokens once, got {self.order}")
        first, last = self._revealed(process, n, t_start)
        known = first + np.append(0, np.cumsum(self._token_counts(last - first)))
        masked = 1 - np.asarray(process.unmasked)
        times = np.abs(masked[None, 1:] - (1 - known[:-1, None] / n)).argmin(1) + 1
        coefficients = {
            "masked_before": n - known[:-1],
            "masked_after": n - known[1:],
            "noise": self.noise * (1 - (np.arange(len(times)) + 1) / len(times)),
        }
        reveal = Phase(self.reveal, times.astype(np.int32), coefficients)
        if not self.polish:
            return [reveal]
        return [reveal, posterior_phase(process, self._polish_times(t_start))]

    def _polish_times(self, t_start: int) -> Int[np.ndarray, " calls_plus_1"]:
        start = round(self.polish_from * t_start)
        if self.polish > start:
            raise UserError(
                f"polish starts at time {start} and can have at most as many calls, got "
                f"{self.polish}"
            )
        return even_times(start, self.polish)

    def _revealed(self, process: MaskAndReplace, n: int, t_start: int) -> tuple[int, int]:
        """How many of n tokens are known before the first call, and after the last one that reveals
        tokens.
        """
        if process.unmasked[-1] == 1:
            raise UserError(
                "counts reveals masked tokens, and this schedule never masks: use ancestral"
            )
        first = n - masked_count(process, n, t_start)
        if not self.polish:
            return first, n
        return first, n - masked_count(process, n, int(self._polish_times(t_start)[0]))

    def _check_calls(self, total: int) -> None:
        if not 1 <= self.calls - self.polish <= total:
            raise UserError(
                f"calls must be in 1..{total}, so that each reveals a token, got "
                f"{self.calls - self.polish}"
            )

    def _token_counts(self, total: int) -> Int[np.ndarray, " calls"]:
        """Tokens to reveal at each call, at least one each, with the sum `total`."""
        calls = self.calls - self.polish
        if not isinstance(self.counts, str):
            if len(self.counts) != calls or sum(self.counts) != total or min(self.counts) < 1:
                raise UserError(
                    f"a plan for {calls} calls needs {calls} positive numbers with the sum "
                    f"{total}, got {self.counts}"
                )
            return np.array(self.counts)
        self._check_calls(total)
        if self.counts == "uniform":
            # the larger counts come last
            return total // calls + (np.arange(calls) >= calls - total % calls)
        known = total * (1 - np.cos(np.pi / 2 * np.linspace(0, 1, calls + 1)))
        known = np.round(known).astype(int)
        for j in range(1, calls + 1):
            known[j] = min(max(known[j], known[j - 1] + 1), total - calls + j)
        return np.diff(known)

    def reveal(
        self,
        keys: PRNGKeys,
        call: CallIndex,
        process: MaskAndReplace,
        logits: Logits,
        z: Tokens,
        coefficients: dict[str, Any],
    ) -> Tokens:
        """Reveals tokens until masked_after of masked_before are left; of rows where a constraint
        gives some tokens, the same share.
        """
        n, masked = z.shape[1], z == process.k
        float_keys, order_keys = noise_keys(keys, call, 2)
        code, log_p, _ = sample_categorical(uniforms(float_keys, n, 2, logits.dtype), logits)
        score = self._score(keys, order_keys, logits, log_p, coefficients["noise"])
        adaptive = self.order in ("confidence", "purity")
        rank = reveal_ranks(score, masked, self.groups, adaptive=adaptive)
        before, after = coefficients["masked_before"], coefficients["masked_after"]
        count = masked.sum(-1, keepdims=True)
        remaining = (count * after + before // 2) // before  # rounded
        return jnp.where(masked & (rank < count - remaining), code, z)

    def _score(
        self,
        keys: PRNGKeys,
        order_keys: PRNGKeys,
        logits: Logits,
        log_p: Float[Array, "b n"],
        noise: Float[Array, ""],
    ) -> Float[Array, "b n"]:
        """The score of each token; the highest are revealed first."""
        n = log_p.shape[1]
        gumbel = lambda: jax.vmap(lambda key: jax.random.gumbel(key, (n,), jnp.float32))(order_keys)
        if self.order == "random":
            return gumbel()
        if self.order == "confidence":
            return log_p + noise * gumbel()
        if self.order == "purity":  # not renormalised after truncation, as in the released code
            return logits.max(-1) + gumbel()
        if self.order == "halton":
            start_keys = noise_keys(keys, -1, 1)[0]
            positions = n // self.groups
            roll = jax.vmap(lambda key: jax.random.randint(key, (), 0, positions))(start_keys)
            ranks = (jnp.asarray(halton_ranks(positions))[None] - roll[:, None]) % positions
            if self.groups > 1:
                group = jnp.arange(self.groups).repeat(positions)
                ranks = jnp.tile(ranks, self.groups) + positions * group[None]
            return -ranks.astype(jnp.float32)
        ranks = jnp.argsort(jnp.array(self.order)).astype(jnp.float32)
        return jnp.broadcast_to(-ranks[None], log_p.shape)


def halton_ranks(n: int) -> Int[np.ndarray, " n"]:
    """The rank of each position of a square grid in the order in which the Halton sequence (2, 3)
    hits the cells. UserError if n is not a square.
    """
    side = math.isqrt(n)
    if side * side != n:
        raise UserError(f"the halton order needs a square grid of tokens, got {n} tokens")
    ranks, points = {}, 0
    while len(ranks) < n:
        points += 1
        row, column = (int(_radical_inverse(points, base) * side) for base in (2, 3))
        ranks.setdefault(row * side + column, len(ranks))
    return np.array([ranks[cell] for cell in range(n)])


def _radical_inverse(i: int, base: int) -> float:
    """The digits of i in this base, mirrored at the point: 0.b2 b1 for b1 b2."""
    value, scale = 0.0, 1.0
    while i:
        i, digit = divmod(i, base)
        scale /= base
        value += digit * scale
    return value
