"""The sampling loop, and what samplers are made of.

A sampler is a frozen dataclass whose `plan` returns phases: consecutive network calls that share
one update and differ in their coefficients. Each phase is one compiled loop. All noise comes from
the image's key and the index of the call.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import DenoiseFn, Logits, PRNGKey, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.samplers.groups import coarse_first

CallIndex = int | Int[Array, ""]  # 0 is the first network call
Update = Callable[[PRNGKeys, CallIndex, MaskAndReplace, Logits, Tokens, Any], Tokens]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Consecutive network calls that share an update.

    Attributes:
      update: `(keys, call, process, logits, z, coefficients) -> z`, one step after network call
        number `call`; its noise comes from `noise_keys`.
      times: int (calls,). The timestep given to the network at each call.
      coefficients: a tree of NumPy arrays (calls, ...), a row for each call.
    """

    update: Update
    times: np.ndarray
    coefficients: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constraint:
    """Tokens that are given and never change, for inpainting.

    Attributes:
      mask: bool (b, n). True where the token is given.
      tokens: int (b, n). The given tokens; not read elsewhere.
    """

    mask: Any  # Any, as pytrees also hold shapes and shardings
    tokens: Any

    def apply(self, z: Tokens) -> Tokens:
        return jnp.where(self.mask, self.tokens, z).astype(z.dtype)


@runtime_checkable
class Sampler(Protocol):
    """What the sampling loop needs of a sampler. Classes that inherit from it start from the
    process's prior.

    Samplers that choose an order of tokens are dataclasses with a field `groups`, the number of
    tokens at each position, which the stage sets to that of its model.
    """

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        """The network calls that take n tokens from time t_start to 0."""
        ...

    def start(self, keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
        """Tokens at time T, from noise alone."""
        return sample_prior(keys, process, n)

    def noised(self, keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens:
        """Tokens at time t of the image z_0."""
        return forward_noised(keys, process, z_0, t)


def sample_loop(
    sampler: Sampler,
    keys: PRNGKeys,
    process: MaskAndReplace,
    denoise: DenoiseFn | Sequence[DenoiseFn],
    z: Tokens,
    *,
    constraint: Constraint | None = None,
    t_start: int | None = None,
    trace: bool = False,
    window: tuple[Any, Any] | None = None,
) -> Any:
    """Samples tokens in [0, k) from z at time `t_start` (T by default).

    Row i of the result depends on row i of the arguments only.

    Args:
      denoise: the network with guidance, `(z, t) -> logits`; log p(x_0), normalised except for
        codes that truncation has removed. Or one such function for each call.
      trace: return (tokens, the states after each call (calls, b, n)).
      window: (first, end), integers or scalar arrays. Makes only the calls first, ..., end - 1,
        from z, the state before them. Not with `trace`.
    """

    def network_call(network, update, z, row):
        call, time, coefficients = row
        logits = network(z, jnp.full(z.shape[:1], time))
        z = update(keys, call, process, logits, z, coefficients).astype(z.dtype)
        z = constraint.apply(z) if constraint else z
        return z, z if trace else None

    z = constraint.apply(z) if constraint else z
    states = []
    for first, network, phase in _loops(phases(sampler, process, z.shape[1], t_start), denoise):
        calls = len(phase.times)
        rows = (first + np.arange(calls), phase.times, phase.coefficients)
        rows = jax.tree.map(jnp.asarray, rows)
        step = functools.partial(network_call, network, phase.update)
        if window is None:
            z, after = jax.lax.scan(step, z, rows)
            states.append(after)
        else:
            begin, end = (jnp.clip(edge - first, 0, calls) for edge in window)
            z = jax.lax.fori_loop(begin, end, functools.partial(_at_row, step, rows), z)
    return (z, jnp.concatenate(states)) if trace else z


def _at_row(step: Callable[..., tuple[Tokens, Any]], rows: Any, i: CallIndex, z: Tokens) -> Tokens:
    return step(z, jax.tree.map(lambda x: x[i], rows))[0]


def _loops(
    phases: list[Phase], denoise: DenoiseFn | Sequence[DenoiseFn]
) -> Iterator[tuple[int, DenoiseFn, Phase]]:
    """(index of the first call, network, calls) of each compiled loop: a phase, or a part of it
    with one network.
    """
    total = sum(len(phase.times) for phase in phases)
    networks = denoise if isinstance(denoise, Sequence) else [denoise] * total
    first = 0
    for phase in phases:
        start = 0
        for network, run in itertools.groupby(networks[first : first + len(phase.times)]):
            end = start + len([*run])
            part = functools.partial(_rows, slice(start, end))
            times, coefficients = jax.tree.map(part, (phase.times, phase.coefficients))
            yield first + start, network, Phase(phase.update, times, coefficients)
            start = end
        first += len(phase.times)


def _rows(rows: slice, x: np.ndarray) -> np.ndarray:
    return x[rows]


def phases(
    sampler: Sampler, process: MaskAndReplace, n: int, t_start: int | None = None
) -> list[Phase]:
    """The phases of a sampler from `t_start`, by default from T. UserError for a time outside
    1..T.
    """
    t_start = process.T if t_start is None else t_start
    if not 1 <= t_start <= process.T:
        raise UserError(f"sampling can start at a time in 1..{process.T}, got {t_start}")
    return [phase for phase in sampler.plan(process, n, t_start) if len(phase.times)]


def call_times(
    sampler: Sampler, process: MaskAndReplace, n: int, t_start: int | None = None
) -> Int[np.ndarray, " calls"]:
    """The timestep given to the network at each call."""
    return np.concatenate([phase.times for phase in phases(sampler, process, n, t_start)])


def noise_keys(keys: PRNGKeys, call: CallIndex, count: int) -> tuple[PRNGKeys, ...]:
    """`count` keys for each image at a network call; call -1 is for the start state."""
    at_call = jax.vmap(lambda key: jax.random.fold_in(key, call + 1))(keys)
    return tuple(jax.vmap(functools.partial(_fold, i))(at_call) for i in range(count))


def _fold(i: int, key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, i)


def sample_prior(keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
    """z_T without an image: each of n tokens is [MASK] with the schedule's final probability, else
    a uniform code.
    """

    def one(code_key, mask_key):
        code = jax.random.randint(code_key, (n,), 0, process.k)
        return jnp.where(jax.random.uniform(mask_key, (n,)) < process.unmasked[-1], code, process.k)

    return jax.vmap(one)(*noise_keys(keys, -1, 2))


def all_masked(keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
    """n tokens that are [MASK], for each key."""
    return jnp.full((keys.shape[0], n), process.k, jnp.int32)


def forward_noised(keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens:
    """z_t ~ q(z_t | z_0), each row from its own key."""
    one = lambda key, z: process.diffuse(key, z[None], jnp.full(1, t))[0]
    return jax.vmap(one)(noise_keys(keys, -1, 1)[0], z_0)


def masked_at(
    keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int, groups: int = 1
) -> Tokens:
    """z_0 with `masked_count` tokens replaced by [MASK] at random positions; of the tokens of a
    position the finest.
    """
    n = z_0.shape[1]
    order = jax.vmap(lambda key: jax.random.permutation(key, n))(noise_keys(keys, -1, 1)[0])
    if groups > 1:
        order = coarse_first(order, jnp.ones(order.shape, bool), groups)
    return jnp.where(order < masked_count(process, n, t), process.k, z_0)


def masked_count(process: MaskAndReplace, n: int, t: int) -> int:
    """The number of n tokens that the schedule masks by time t, if it masks all of them by T."""
    return round(n * (1 - process.unmasked[t]) / (1 - process.unmasked[-1]))


def even_times(t_start: int, calls: int) -> Int[np.ndarray, " calls_plus_1"]:
    """calls + 1 falling times from `t_start` to 0, as evenly spaced as integers allow."""
    if not 1 <= calls <= t_start:
        raise UserError(f"calls must be in 1..{t_start}, got {calls}")
    return np.round(np.linspace(t_start, 0, calls + 1)).astype(np.int32)
