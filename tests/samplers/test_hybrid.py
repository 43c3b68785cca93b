"""Every sampler on the schedule `hybrid`, where the network expects replaced tokens at all times but
the first and the last, against distributions enumerated over all states.

The data are three correlated tokens over two codes, and the network is perfect: by Bayes' rule from
the explicit step matrices it knows p(x_i | z_t) for every state and time.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.base import call_times, sample_loop
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.released import PriorRule, ReleasedFast

N, K, T, ROWS = 3, 2, 8, 20_000
STATES = np.array([*itertools.product(range(K + 1), repeat=N)])  # K is [MASK]
START = np.eye(len(STATES))[-1]  # all [MASK], where hybrid ends
CLEAN = (STATES != K).all(1)
DATA = np.zeros(len(STATES))
DATA[CLEAN] = [0.3, 0.02, 0.05, 0.13, 0.04, 0.06, 0.1, 0.3]
PROCESS = schedules.hybrid(T, K, replaced=0.2)
PLAN = Counts(calls=2, order=(2, 0, 1)).planned(PROCESS, np.array([0.7, 0.5, 0.1]), T)


def perfect(exact):
    """p(x_i | z_t) at [t, state, i], and 0 for states that do not occur: (T + 1, states, N, K)."""
    out = np.zeros((exact.T + 1, len(STATES), N, K))
    for t in range(exact.T + 1):
        q = exact.between(0, t).astype(float)
        for i, z in enumerate(STATES):
            joint = DATA[CLEAN] * np.prod(q[STATES[CLEAN], z], axis=1)
            for code in range(K):
                out[t, i, :, code] = (STATES[CLEAN] == code).T @ joint
            out[t, i] /= max(joint.sum(), 1e-300)
    return out


def move(p, token):
    """The distribution after every token moved on its own: `token(i, j)` is the distribution of
    token j in state i.
    """
    after = np.zeros(len(STATES))
    for i in np.flatnonzero(p):
        each = [np.asarray(token(i, j), float)[STATES[:, j]] for j in range(N)]
        after += p[i] * np.prod(each, axis=0)
    return after


def steps(exact, predicted, p, strides, eta=0.0):
    """After strides (network's time, s, t) by Bayes' rule; `eta` remasks as in Wang et al. 2025."""
    live = [float(1 - exact.between(0, t)[0, K]) for t in range(exact.T + 1)]
    for told, s, t in strides:
        rate = eta * min(1, (1 - live[s]) / live[t]) if live[t] else 0.0
        leaves = (live[s] - (1 - rate) * live[t]) / (1 - live[t])  # [MASK]

        def token(i, j, told=told, s=s, t=t, rate=rate, leaves=leaves):
            q = exact.reverse(predicted[told, i, j], STATES[i, j], s, t)
            if STATES[i, j] == K:  # codes in the same proportions
                return np.append(leaves * q[:K] / q[:K].sum(), 1 - leaves)
            return (1 - rate) * q + rate * np.eye(K + 1)[K]

        p = move(p, token)
    return p


def reveal(predicted, p, t, positions):
    """After each of the sets of `positions`, with its share, got codes of the network."""
    after = np.zeros(len(STATES))
    for share, chosen in positions:

        def token(i, j, chosen=chosen):
            stays = j not in chosen(i)
            return np.eye(K + 1)[STATES[i, j]] if stays else np.append(predicted[t, i, j], 0)

        after += share * move(p, token)
    return after


def at_random(predicted, p, t, count):
    """After `count` masked positions, each set with equal probability, got codes."""
    ranks = [*itertools.permutations(range(N))]
    masked = lambda order, i: [j for j in order if STATES[i, j] == K][:count]
    return reveal(
        predicted, p, t, [(1 / len(ranks), lambda i, r=rank: masked(r, i)) for rank in ranks]
    )


def counts_polished(exact, x):
    """Two calls of `counts`, which leave one of three tokens at t = 2, and two exact steps."""
    first, second = call_times(Counts(calls=4, polish=2), PROCESS, N)[:2]
    p = at_random(x, at_random(x, START, first, 1), second, 1)
    return steps(exact, x, p, [(2, 1, 2), (1, 0, 1)])


def counts_planned(exact, x):
    p, known = START, 0
    for t, count in zip(call_times(PLAN, PROCESS, N), PLAN.counts):
        chosen = PLAN.order[known : known + count]
        p, known = reveal(x, p, t, [(1.0, lambda i, c=chosen: c)]), known + count
    return p


def prior_rule(exact, x):
    """A token each at t = 8 and 5, and the exact step from 3 to 0."""
    p = at_random(x, at_random(x, START, 8, 1), 5, 1)
    return steps(exact, x, p, [(3, 0, 3)])


EXACT = {
    "ancestral": (
        Ancestral(calls=3),
        lambda e, x: steps(e, x, START, [(8, 5, 8), (5, 3, 5), (3, 0, 3)]),
    ),
    "remask": (
        Remask(calls=3, eta=0.5, share=1.0),
        lambda e, x: steps(e, x, START, [(8, 5, 8), (5, 3, 5), (3, 0, 3)], eta=0.5),
    ),
    "released_fast": (
        ReleasedFast(calls=4),  # undoes one step of each stride of 3
        lambda e, x: steps(e, x, START, [(8, 5, 6), (5, 2, 3), (2, 1, 2), (1, 0, 1)]),
    ),
    "counts": (
        Counts(calls=N),
        lambda e, x: at_random(
            x, at_random(x, at_random(x, START, 8, 1), TIMES[1], 1), TIMES[2], 1
        ),
    ),
    "polished": (Counts(calls=4, polish=2), counts_polished),
    "planned": (PLAN, counts_planned),
    "prior_rule": (PriorRule(calls=3, rule=1), prior_rule),
}
TIMES = call_times(Counts(calls=N), PROCESS, N)


@pytest.fixture(scope="module")
def exact(chain):
    return chain(PROCESS)


@pytest.fixture(scope="module")
def predicted(exact):
    return perfect(exact)


def keys(rows):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(rows))


@pytest.mark.parametrize("name", EXACT)
def test_a_sampler_draws_from_its_exact_distribution(name, exact, predicted):
    sampler, enumerate_states = EXACT[name]
    log_p = jnp.asarray(np.log(np.maximum(predicted, 1e-30)), jnp.float32)
    digits = (K + 1) ** np.arange(N - 1, -1, -1)
    denoise = lambda z, t: log_p[t, z @ jnp.asarray(digits)]
    run = lambda ks: sample_loop(sampler, ks, PROCESS, denoise, sampler.start(ks, PROCESS, N))
    counts = np.bincount(np.asarray(jax.jit(run)(keys(ROWS))) @ digits, minlength=len(STATES))
    want = enumerate_states(exact, predicted)
    assert abs(want.sum() - 1) < 1e-9 and want[~CLEAN].max() < 1e-12
    assert counts[~CLEAN].sum() == 0
    assert stats.chisquare(counts[CLEAN], want[CLEAN] / want.sum() * ROWS).pvalue > 1e-3
    wrong = want[CLEAN] * (1 + 0.1 * (np.arange(CLEAN.sum()) % 2))  # which is noticed
    assert stats.chisquare(counts[CLEAN], wrong / wrong.sum() * ROWS).pvalue < 1e-3


def test_ancestral_sampling_converges_to_the_data_and_keeping_tokens_does_not(chain):
    """What the samplers lose with a perfect network, from the enumeration alone: the error of exact
    steps falls with their number, that of `counts` at one token a call does not vanish, since
    the network distrusts tokens that were never replaced.
    """
    distance = lambda p: np.abs(p - DATA).sum() / 2
    errors = []
    for fine in (8, 32):
        process = schedules.hybrid(fine, K, replaced=0.2)
        exact = chain(process)
        predicted = perfect(exact)
        strides = [(t, t - 1, t) for t in range(fine, 0, -1)]
        errors.append(distance(steps(exact, predicted, START, strides)))
    assert errors[1] < 0.3 * errors[0] < 0.02
    p = START
    for t in call_times(Counts(calls=N), process, N):
        p = at_random(predicted, p, t, 1)
    assert distance(p) > 5 * errors[1]


def test_an_oracle_returns_the_data():
    z_0 = np.array([[0, 1, 2, 3, 1, 0, 0, 2, 3], [3, 3, 0, 0, 2, 1, 2, 3, 0]])
    process, samplers = (
        schedules.hybrid(6, 4, replaced=0.25),
        [
            Ancestral(calls=4),
            Remask(calls=4, eta=0.3),
            *(Counts(calls=4, order=order) for order in ("random", "confidence", "halton")),
            Counts(calls=4, order="purity", counts="cosine"),
            Counts(calls=4, polish=1, polish_from=0.2, origin="process"),
            ReleasedFast(calls=4),
            PriorRule(calls=4, rule=2, weight=0.5),
        ],
    )
    denoise = lambda z, t: 60.0 * jax.nn.one_hot(z_0, 4)
    run = lambda ks: [
        sample_loop(s, ks, process, denoise, s.start(ks, process, z_0.shape[1])) for s in samplers
    ]
    for tokens in jax.jit(run)(keys(len(z_0))):
        np.testing.assert_array_equal(tokens, z_0)
