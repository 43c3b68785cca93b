"""Reveal an exact number of tokens at each call and keep them: all-masked to clean in a planned
number of calls.

Random order draws from the same model as ancestral sampling of the `absorbing` process, without its
coin flips; other orders choose which tokens come first (Chang et al. 2022; Tang et al. 2022;
Besnier et al. 2025).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.ancestral import ancestral_phase
from vqd_jax.samplers.base import (
    Phase,
    all_masked,
    even_times,
    masked_at,
    noise,
    sample_loop,
    start_of_process,
)
from vqd_jax.samplers.categorical import sample_categorical, uniforms

ORDERS = ("random", "confidence", "purity", "halton")
LOG_NONE = -1e30  # score of tokens that are not [MASK]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Attributes:
    calls: network calls, at most the number of tokens (with `polish`, beyond those).
    order: random; confidence: log p of the drawn code plus noise that falls to 0; purity: positions
      drawn in proportion to their largest p; halton: a fixed low-discrepancy order, rolled for each
      image; or a tuple with all n positions in their order.
    counts: tokens per call: "uniform", "cosine" (few at first), or a tuple with `calls` - `polish`
    numbers whose sum is n.
    noise: of `confidence`: Gumbel noise times noise * (1 - j / calls).
    polish: that many of the calls come last and are exact ancestral ones, which re-draw replaced
    tokens too.
    polish_from: the time at which they begin, as a share of T.
    origin: what it starts from: "masked" (every token) or "process" (the schedule's own end, where
      some codes are random; without `polish` those are never drawn again).
    """

    calls: int
    order: str | tuple[int, ...] = "random"
    counts: str | tuple[int, ...] = "uniform"
    noise: float = 4.5
    polish: int = 0
    polish_from: float = 0.25
    origin: str = "masked"

    __call__ = sample_loop
    noised = staticmethod(masked_at)

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
                f"polish={self.polish}, "
                f"calls={self.calls}, polish_from={self.polish_from}"
            )

    def start(self, keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
        return (all_masked if self.origin == "masked" else start_of_process)(keys, process, n)

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        if not isinstance(self.order, str) and sorted(self.order) != list(range(n)):
            raise UserError(f"an order must name each of the {n} positions once, got {self.order}")
        masked = 1 - np.asarray(process.unmasked)
        if not masked[-1]:
            raise UserError(
                "counts reveals masked tokens, and this schedule never masks: use ancestral"
            )
        from_start = (
            masked[t_start] / masked[-1]
        )  # share of the tokens to reveal that are [MASK] now
        polish_at = round(self.polish_from * t_start) if self.polish else 0
        last = (
            masked[polish_at] / masked[-1] if self.polish else 0.0
        )  # and that the polish starts with
        known = self._known(n, round(n * (1 - from_start)), n - round(n * last))
        fraction = 1 - known / n
        times = np.abs(masked[None, 1:] - fraction[:-1, None]).argmin(1) + 1
        reveal = len(times)
        numbers = {
            "left": n - known[:-1],
            "after": n - known[1:],
            "noise": self.noise * (1 - (np.arange(reveal) + 1) / reveal),
        }
        stretches = [Phase(update=self.reveal, times=times.astype(np.int32), numbers=numbers)]
        if self.polish:
            stretches.append(ancestral_phase(process, even_times(polish_at, self.polish)))
        return stretches

    def _known(self, n: int, first: int, last: int) -> np.ndarray:
        """How many tokens are known before each call of the reveal, and after the last."""
        calls = self.calls - self.polish
        if not isinstance(self.counts, str):
            if len(self.counts) != calls or sum(self.counts) != n or min(self.counts) < 1:
                raise UserError(
                    f"a plan for {calls} calls needs {calls} positive numbers with the sum {n}, "
                    f"got {self.counts}"
                )
            return np.append(0, np.cumsum(self.counts))
        if not 1 <= calls <= last - first:
            raise UserError(
                f"calls must be in 1..{last - first}, so that each reveals a token, got {calls}"
            )
        even = (last - first) // calls + (
            np.arange(calls) >= calls - (last - first) % calls
        )  # the larger numbers come last
        if self.counts == "uniform":
            return first + np.append(0, np.cumsum(even))
        known = np.round(
            first + (last - first) * (1 - np.cos(np.pi / 2 * np.linspace(0, 1, calls + 1)))
        ).astype(int)
        for j in range(1, calls + 1):  # at least one each, and enough left for the rest
            known[j] = min(max(known[j], known[j - 1] + 1), last - calls + j)
        return known

    def reveal(
        self,
        keys: PRNGKeys,
        place: Any,
        process: MaskAndReplace,
        logits: Logits,
        z: Tokens,
        now: dict[str, Any],
    ) -> Tokens:
        """Reveals the share (left - after) / left of each row's [MASK] tokens."""
        k, n = process.k, z.shape[1]
        floats, order = noise(keys, place, 2)
        code, log_p, _ = sample_categorical(uniforms(floats, n, 2, logits.dtype), logits)
        score = self._score(keys, order, logits, log_p, now)
        masked = z == k
        score = jnp.where(masked, score, LOG_NONE)
        rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1)
        here = masked.sum(-1, keepdims=True)
        stays = (here * now["after"] + now["left"] // 2) // now[
            "left"
        ]  # rounded; exact if no token was given
        return jnp.where(masked & (rank < here - stays), code, z)

    def _score(
        self,
        roots: PRNGKeys,
        keys: PRNGKeys,
        logits: Logits,
        log_p: Float[Array, "b n"],
        now: dict[str, Any],
    ) -> Float[Array, "b n"]:
        """Tokens with high scores come first."""
        n = log_p.shape[1]
        gumbel = lambda: jax.vmap(lambda key: jax.random.gumbel(key, (n,), jnp.float32))(keys)
        if self.order == "random":
            return gumbel()
        if self.order == "confidence":
            return log_p + now["noise"] * gumbel()
        if self.order == "purity":
            return jax.nn.log_softmax(logits).max(-1) + gumbel()
        if self.order == "halton":
            first = jax.vmap(lambda key: jax.random.randint(key, (), 0, n))(noise(roots, -1, 1)[0])
            return -((jnp.asarray(halton_places(n))[None] - first[:, None]) % n).astype(jnp.float32)
        return jnp.broadcast_to(
            -jnp.argsort(jnp.array(self.order)).astype(jnp.float32)[None], log_p.shape
        )


def halton_places(n: int) -> np.ndarray:
    """When each token of a square grid has its turn, (n,): cells in the order in which the Halton
    sequence (2, 3) hits them.
    """
    side = math.isqrt(n)
    if side * side != n:
        raise UserError(f"the halton order needs a square grid of tokens, got {n} tokens")
    first, points = {}, 0
    while len(first) < n:
        points += 1
        cell = int(_radical_inverse(points, 2) * side) * side + int(
            _radical_inverse(points, 3) * side
        )
        first.setdefault(cell, len(first))
    return np.array([first[cell] for cell in range(n)])


def _radical_inverse(i: int, base: int) -> float:
    """The digits of i mirrored at the point."""
    value, scale = 0.0, 1.0
    while i:
        i, digit = divmod(i, base)
        scale /= base
        value += digit * scale
    return value
