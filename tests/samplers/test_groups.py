"""Samplers of several tokens a position: the exact distributions of those that choose an order,
enumerated over all states, and a coarse token before the finer ones of its position.

The data are two positions with a coarse and a fine code each, the fine one after the coarse one,
and the network is perfect: the exact marginals given the tokens that are not [MASK]. The
enumeration is NumPy and float64 and shares nothing with the samplers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.base import Constraint, masked_at, masked_count, sample_loop
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.released import PriorRule, ReleasedFast

K, G, L, T, ROWS = 2, 2, 2, 8, 30_000
N = G * L
STATES = np.array([*itertools.product(range(K + 1), repeat=N)])  # K is [MASK]
INDEX = {tuple(z): i for i, z in enumerate(STATES.tolist())}
START = np.eye(len(STATES))[-1]  # all [MASK]
PROCESS = schedules.absorbing(T, K)


def joint():
    """p(coarse of both positions, fine of both positions), for the states without [MASK]."""
    data = STATES[(STATES != K).all(1)]
    coarse = np.array([[0.45, 0.1], [0.15, 0.3]])
    fine = np.array([[[0.9, 0.1], [0.3, 0.7]], [[0.2, 0.8], [0.6, 0.4]]])  # position, coarse, fine
    p = coarse[data[:, 0], data[:, 1]]
    return data, p * fine[0, data[:, 0], data[:, 2]] * fine[1, data[:, 1], data[:, 3]]


DATA, P_DATA = joint()


def marginals():
    """p(token i | the tokens that are not [MASK]) for every state: (states, N, K)."""
    fits = ((STATES[:, None] == DATA[None]) | (STATES[:, None] == K)).all(-1) * P_DATA[None]
    both = np.stack([fits @ (DATA == code) for code in range(K)], axis=-1)
    return both / both.sum(-1, keepdims=True)


P = marginals()
LOG_P = jnp.asarray(np.log(np.maximum(P, 1e-30)), jnp.float32)
PERFECT = lambda z, t: LOG_P[z @ (K + 1) ** jnp.arange(N - 1, -1, -1)]


def check(sampler, want):
    """Chi-square of the tokens that `sampler` draws against the distribution `want` of states."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(ROWS))
    draw = jax.jit(
        lambda ks: sample_loop(sampler, ks, PROCESS, PERFECT, sampler.start(ks, PROCESS, N))
    )
    index = np.asarray(draw(keys)) @ (K + 1) ** np.arange(N - 1, -1, -1)
    counts, likely = np.bincount(index, minlength=len(STATES)), want > 1e-12
    assert abs(want.sum() - 1) < 1e-9 and counts[~likely].sum() == 0
    expected = want[likely] / want[likely].sum() * ROWS
    assert stats.chisquare(counts[likely], expected).pvalue > 1e-3


def data():
    out = np.zeros(len(STATES))
    for z, p in zip(DATA, P_DATA):
        out[INDEX[tuple(z.tolist())]] = p
    return out


@pytest.mark.parametrize(
    "order",
    ["random", *(pytest.param(x, marks=pytest.mark.slow) for x in ("purity", (2, 0, 3, 1)))],
    ids=str,
)
def test_a_token_a_call_draws_the_data(order):
    """Whatever the order, as long as it does not depend on the codes that are drawn."""
    check(Counts(calls=N, order=order, groups=G), data())


def drawn_sets(weights, size):
    """(set, probability) of `size` tokens drawn one after the other without replacement, in
    proportion to the weights.
    """
    out = {}
    for order in itertools.permutations(range(len(weights)), size):
        left, p = dict(enumerate(weights)), 1.0
        for i in order:
            p *= left[i] / sum(left.values())
            del left[i]
        key = tuple(sorted(order))
        out[key] = out.get(key, 0.0) + p
    return out.items()


def reveal(p, count, weight, swap):
    """The distribution after `count` masked tokens got codes. `weight(i, j, y)` is the weight of
    the masked token j of state i whose candidate is y.

    With `swap` the chosen tokens of a position are replaced by its coarsest masked ones; without, a
    token whose coarser one is masked comes after all others.
    """
    after = np.zeros(len(STATES))
    for i in np.flatnonzero(p):
        masked = np.flatnonzero(STATES[i] == K)
        waits = lambda j: j >= L and j - L in masked
        for candidate in itertools.product(range(K), repeat=len(masked)):
            proposal = STATES[i].copy()
            proposal[masked] = candidate
            chance = np.prod([P[i, j, proposal[j]] for j in masked])
            late = [1e-60 if waits(j) and not swap else 1.0 for j in masked]
            weights = [weight(i, j, proposal[j]) * each for j, each in zip(masked, late)]
            for chosen, share in drawn_sets(weights, count):
                z, chosen = STATES[i].copy(), masked[[*chosen]]
                for position in range(L):
                    number = sum(j % L == position for j in chosen)
                    own = sorted(j for j in masked if j % L == position)
                    for j in own[:number] if swap else [j for j in own if j in chosen]:
                        z[j] = proposal[j]
                after[INDEX[tuple(z.tolist())]] += p[i] * chance * share
    return after


def test_random_counts_swap_the_tokens_of_a_position():
    p = START
    for count in (2, 2):
        p = reveal(p, count, lambda i, j, y: 1.0, swap=True)
    check(Counts(calls=2, groups=G), p)


def test_confident_counts_make_fine_tokens_wait():
    """Of three tokens in the first call only two need not wait; another is taken all the same."""
    p = START
    for call, count in enumerate((3, 1)):
        c = 2.0 * (1 - (call + 1) / 2)
        weight = lambda i, j, y, c=c: P[i, j, y] ** (1 / c) if c else 1.0
        p = reveal(p, count, weight, swap=False)
    check(Counts(calls=2, order="confidence", noise=2.0, counts=(3, 1), groups=G), p)


@pytest.mark.slow
def test_purity_makes_fine_tokens_wait():
    """The last call draws all tokens that are left, each by itself."""
    sampler = PriorRule(calls=2, rule=2, groups=G)
    (count,) = sampler.budgets(N)[:0:-1]
    p = reveal(START, count, lambda i, j, y: P[i, j].max(), swap=False)
    check(sampler, reveal(p, N - count, lambda i, j, y: 1.0, swap=True))


# ---- the order, on a grid of four positions and three groups

CODES, POSITIONS, GROUPS, IMAGES = 3, 4, 3, 6
SIZE = POSITIONS * GROUPS
LARGER = schedules.absorbing(12, CODES)
ORDERS = {
    "random": Counts(calls=5, groups=GROUPS),
    "confidence": Counts(calls=5, order="confidence", groups=GROUPS),
    "purity": Counts(calls=5, order="purity", groups=GROUPS),
    "halton": Counts(calls=SIZE, order="halton", groups=GROUPS),
    "tuple": Counts(calls=5, order=tuple(range(SIZE - 1, -1, -1)), groups=GROUPS),
    "polished": Counts(calls=5, polish=1, groups=GROUPS),
    "rule 1": PriorRule(calls=6, rule=1, groups=GROUPS),
    "rule 2": PriorRule(calls=6, rule=2, groups=GROUPS),
}
LAST = ("polished", "rule 1", "rule 2")  # the last call draws each token by itself


def table(z, t):
    """Logits that depend on the token and its place."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, CODES + 1, CODES)) * 2)
    return jax.nn.log_softmax(rows[jnp.arange(SIZE)[None], z].astype(jnp.float32))


@functools.cache
def program(name):
    """States before the first call and after each, for keys and given tokens."""
    sampler = ORDERS[name]

    def run(ks, constraint):
        z = constraint.apply(sampler.start(ks, LARGER, SIZE))
        _, after = sample_loop(sampler, ks, LARGER, table, z, constraint=constraint, trace=True)
        return jnp.concatenate([z[None], after])

    return jax.jit(run)


def states(name, known=0.0):
    """Whether each token is masked: (calls + 1, images, groups, positions). `known` is the share of
    given tokens, of which some are fine ones without their coarse ones.
    """
    rng = np.random.default_rng(3)
    mask, tokens = rng.random((IMAGES, SIZE)) < known, rng.integers(0, CODES, (IMAGES, SIZE))
    constraint = Constraint(mask=mask, tokens=tokens.astype(np.int32))
    out = np.asarray(program(name)(jax.random.split(jax.random.key(1), IMAGES), constraint))
    assert (out[:, mask] == tokens[mask][None]).all() and (out[-1] < CODES).all()
    return (out == CODES).reshape(len(out), IMAGES, GROUPS, POSITIONS)


def steps(masked, name):
    """Pairs of states before and after the calls in which the order counts."""
    pairs = [*zip(masked, masked[1:])]
    return pairs[:-1] if name in LAST else pairs


@pytest.mark.parametrize("known", [0.0, 0.3])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x in ("tuple", "polished", "rule 1")))
        for x in ORDERS
    ],
)
def test_no_coarser_token_is_left_masked_when_a_token_is_revealed(name, known):
    for before, after in steps(states(name, known), name):
        revealed = before & ~after
        left_coarser = np.cumsum(after, axis=1) - after > 0
        assert not (revealed & left_coarser).any()


@pytest.mark.parametrize("name", ["confidence", "purity", "rule 2", "halton"])
def test_a_fine_token_waits_for_a_later_call_unless_nothing_else_is_left(name):
    for before, after in steps(states(name), name):
        revealed, waits = before & ~after, np.cumsum(before, axis=1) - before > 0
        for image in range(IMAGES):
            if (revealed & waits)[image].any():
                assert not (after & ~waits)[image].any()


def test_halton_has_one_group_after_the_other():
    masked = states("halton")
    for left in masked:
        known = (~left).sum(-1)
        assert all(sorted(row, reverse=True) == row.tolist() for row in known)
        assert ((known == 0) | (known == POSITIONS)).sum(1).min() >= GROUPS - 1
    first = [left.argmin(-1)[..., 0] for left in (masked[1], masked[1 + POSITIONS][:, 1:])]
    np.testing.assert_array_equal(*first)  # each group in the same order
    assert len(set(first[0].tolist())) > 1  # which starts elsewhere in each image


def test_the_finest_tokens_of_an_image_are_masked_first():
    keys = jax.random.split(jax.random.key(0), 40)
    z_0 = jnp.zeros((40, SIZE), jnp.int32)
    z = np.asarray(masked_at(keys, LARGER, z_0, 6, GROUPS)).reshape(40, GROUPS, POSITIONS)
    assert ((z == CODES).sum((1, 2)) == masked_count(LARGER, SIZE, 6)).all()
    assert (np.diff((z == CODES).astype(int), axis=1) >= 0).all()
    assert (z[:, 0] == CODES).any() and (z[:, 2] < CODES).any()
    plain = np.asarray(masked_at(keys, LARGER, z_0, 6)).reshape(40, GROUPS, POSITIONS)
    np.testing.assert_array_equal((plain == CODES).sum(1), (z == CODES).sum(1))


@pytest.mark.parametrize("make", [Ancestral, Remask, ReleasedFast])
def test_samplers_without_an_order_know_no_groups(make):
    assert not hasattr(make(calls=3), "groups")
