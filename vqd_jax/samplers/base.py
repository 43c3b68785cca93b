"""How every sampler runs: its calls in stretches, each stretch one compiled loop, of all its calls
or of those in a window.

A sampler is a frozen dataclass whose `plan` returns stretches. Within a stretch every call does the
same thing to other numbers. Noise comes from (the image's key, the number of the call) and nothing
else.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import DenoiseFn, Logits, PRNGKey, PRNGKeys, Tokens
from vqd_jax.diffusion.process import MaskAndReplace

Update = Callable[[PRNGKeys, Any, MaskAndReplace, Logits, Tokens, Any], Tokens]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Calls that share an update.

    Attributes:
      update: `(keys, place, process, logits, z, numbers) -> z` at the call number `place`; its
      noise is from `noise`.
      times: the time that the network is told at each call, (calls,) int.
      numbers: what differs between the calls: a tree of NumPy arrays (calls, ...).
    """

    update: Update
    times: np.ndarray
    numbers: Any


@runtime_checkable
class Sampler(Protocol):
    """`plan`: what to do with n tokens that are at time `begin`; `start`: tokens at T without an
    image; `noised`: those of an image at a time t.
    """

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]: ...

    def start(self, keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens: ...

    def noised(self, keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constraint:
    """Tokens that are given: `tokens` int (b, n) where `mask` bool (b, n) is True; they are equal
    in the result.
    """

    mask: Any
    tokens: Any

    def hold(self, z: Tokens) -> Tokens:
        return jnp.where(self.mask, self.tokens, z).astype(z.dtype)


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
    """Tokens in [0, k) from tokens at time `begin` (T by default); row i depends on row i of the
    arguments only.

    `denoise` may be a sequence with a function for each call: neighbours that are the same object
    share a scan. With `trace` returns (tokens, the states after each call (calls, b, n)). With a
    `window` (from, to), which need not be known when this is compiled, only the calls with these
    numbers are made: z is the state before them. Then there is no trace.
    """
    stretches, states = _stretches(sampler, process, z.shape[1], t_start), []
    functions = (
        denoise
        if isinstance(denoise, Sequence)
        else [denoise] * sum(len(s.times) for s in stretches)
    )
    z = constraint.hold(z) if constraint else z
    first = 0
    for stretch in stretches:
        for begins, ends in _runs(functions[first : first + len(stretch.times)]):
            one = functools.partial(
                network_call,
                stretch.update,
                keys,
                process,
                functions[first + begins],
                constraint=constraint,
            )
            rows = jax.tree.map(
                jnp.asarray, (first + np.arange(begins, ends), *_part(stretch, slice(begins, ends)))
            )
            if window is None:
                z, seen = jax.lax.scan(functools.partial(_step, one, trace), z, rows)
                states.append(seen)
            else:
                z = jax.lax.fori_loop(
                    *_within(window, first + begins, first + ends),
                    functools.partial(_place, one, rows),
                    z,
                )
        first += len(stretch.times)
    return (z, jnp.concatenate(states)) if trace else z


def network_call(
    update: Update,
    keys: PRNGKeys,
    process: MaskAndReplace,
    denoise: DenoiseFn,
    z: Tokens,
    place: Any,
    time: Any,
    numbers: Any,
    *,
    constraint: Constraint | None = None,
) -> Tokens:
    """One network call and what follows from it; `place` is its number, from 0."""
    z = update(keys, place, process, denoise(z, jnp.full(z.shape[:1], time)), z, numbers).astype(
        z.dtype
    )
    return constraint.hold(z) if constraint else z


def noise(keys: PRNGKeys, place: Any, count: int) -> tuple[PRNGKeys, ...]:
    """`count` keys for each image at the call number `place` (from 0; -1 is before the first)."""
    here = jax.vmap(lambda key: jax.random.fold_in(key, place + 1))(keys)
    return tuple(jax.vmap(functools.partial(_fold, i))(here) for i in range(count))


def _fold(i: int, key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, i)


def _step(
    one: Callable[..., Tokens], trace: bool, z: Tokens, row: Any
) -> tuple[Tokens, Tokens | None]:
    z = one(z, *row)
    return z, z if trace else None


def _place(one: Callable[..., Tokens], rows: Any, j: Any, z: Tokens) -> Tokens:
    return one(z, *jax.tree.map(lambda x: x[j], rows))


def _within(window: tuple[Any, Any], begins: int, ends: int) -> list[Any]:
    """Where the window begins and ends among the calls `begins` to `ends`."""
    return [jnp.clip(edge - begins, 0, ends - begins) for edge in window]


def _part(stretch: Phase, which: slice) -> tuple[Any, Any]:
    """The times and numbers of some calls."""
    return jax.tree.map(lambda x: x[which], (stretch.times, stretch.numbers))


def call_times(
    sampler: Sampler, process: MaskAndReplace, n: int, t_start: int | None = None
) -> np.ndarray:
    """The time that the network is told at each call."""
    return np.concatenate([stretch.times for stretch in _stretches(sampler, process, n, t_start)])


def _stretches(
    sampler: Sampler, process: MaskAndReplace, n: int, t_start: int | None
) -> list[Phase]:
    t_start = process.T if t_start is None else t_start
    if not 1 <= t_start <= process.T:
        raise UserError(f"a sampler can begin at a time in 1..{process.T}, got {t_start}")
    return [s for s in sampler.plan(process, n, t_start) if len(s.times)]


def _runs(functions: Sequence[DenoiseFn]) -> list[tuple[int, int]]:
    """Where each row of the same object begins and ends."""
    cuts = [i for i in range(1, len(functions)) if functions[i] is not functions[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(functions)]))


def start_of_process(keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
    """z_T without an image: each of n tokens is [MASK] with the schedule's final probability, else
    a uniform code.
    """

    def one(code_key, mask_key):
        code = jax.random.randint(code_key, (n,), 0, process.k)
        return jnp.where(jax.random.uniform(mask_key, (n,)) < process.unmasked[-1], code, process.k)

    return jax.vmap(one)(*noise(keys, -1, 2))


def forward_noised(keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens:
    """z_t ~ q(z_t | z_0), row i from keys[i]."""
    one = lambda key, z: process.diffuse(key, z[None], jnp.full(1, t))[0]
    return jax.vmap(one)(noise(keys, -1, 1)[0], z_0)


def masked_at(keys: PRNGKeys, process: MaskAndReplace, z_0: Tokens, t: int) -> Tokens:
    """z_0 with the number of [MASK] that the schedule expects at t, in random places, and nothing
    replaced.
    """
    n = z_0.shape[1]
    count = round(n * (1 - process.unmasked[t]) / (1 - process.unmasked[-1]))
    order = jax.vmap(lambda key: jax.random.permutation(key, n))(noise(keys, -1, 1)[0])
    return jnp.where(order < count, process.k, z_0)


def all_masked(keys: PRNGKeys, process: MaskAndReplace, n: int) -> Tokens:
    return jnp.full((keys.shape[0], n), process.k, jnp.int32)


def even_times(t_start: int, calls: int) -> np.ndarray:
    """calls + 1 falling times from `begin` to 0, as evenly as integers allow."""
    if not 1 <= calls <= t_start:
        raise UserError(f"calls must be in 1..{t_start}, got {calls}")
    return np.round(np.linspace(t_start, 0, calls + 1)).astype(np.int32)
