"""Samplers against the exact distribution of what they draw, enumerated over all states.

The data are four tokens of a Markov chain over three codes, and the network is perfect: the exact
marginals given the tokens that are not [MASK]. The enumeration below is NumPy and float64, written
from the papers and the released code, and shares nothing with the samplers.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.base import Sampler, all_masked, call_times, sample_loop
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.samplers.released import PriorRule, ReleasedFast

N, K, T, ROWS = 4, 3, 12, 40_000
STATES = np.array([*itertools.product(range(K + 1), repeat=N)])  # K is [MASK]
INDEX = {tuple(z): i for i, z in enumerate(STATES.tolist())}
START = np.eye(len(STATES))[-1]  # all [MASK]
PROCESS = schedules.absorbing(T, K)


def marginals():
    """p(token i | the tokens that are not [MASK]) for every state: (states, N, K)."""
    step = np.array([[0.7, 0.2, 0.1], [0.05, 0.85, 0.1], [0.3, 0.1, 0.6]])
    data = STATES[(STATES != K).all(1)]
    p = np.array([0.5, 0.2, 0.3])[data[:, 0]] * np.prod(
        [step[data[:, i], data[:, i + 1]] for i in range(N - 1)], axis=0
    )
    fits = ((STATES[:, None] == data[None]) | (STATES[:, None] == K)).all(-1) * p[None]
    joint = np.stack([(fits @ (data == code)) for code in range(K)], axis=-1)
    return joint / joint.sum(-1, keepdims=True)


P = marginals()


def table(log_p):
    log_p = jnp.asarray(log_p, jnp.float32)
    return lambda z, t: log_p[z @ (K + 1) ** jnp.arange(N - 1, -1, -1)]


PERFECT = table(np.log(np.maximum(P, 1e-30)))


def check(sampler, want, denoise=PERFECT, process=PROCESS):
    """Chi-square of the tokens that `sampler` draws against the distribution `want` of states."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(ROWS))
    draw = jax.jit(
        lambda ks: sample_loop(sampler, ks, process, denoise, sampler.start(ks, process, N))
    )
    counts = np.bincount(
        np.asarray(draw(keys)) @ (K + 1) ** np.arange(N - 1, -1, -1), minlength=256
    )
    want = np.asarray(want, np.float64)
    assert abs(want.sum() - 1) < 1e-9 and counts[want < 1e-12].sum() == 0
    likely = want * ROWS > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(want[likely], want[~likely].sum() + 1e-12) * ROWS
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def independent_steps(chain, p, steps):
    """The distribution after steps (s, t) in which every token moves by the exact posterior."""
    exact = chain(PROCESS)
    for s, t in steps:
        posteriors = [exact.posteriors(z, s, t) for z in range(K + 1)]
        after = np.zeros(len(STATES))
        for i in np.flatnonzero(p):
            tokens = [P[i, j] @ posteriors[z] for j, z in enumerate(STATES[i])]
            each = [(q / q.sum())[STATES[:, j]] for j, q in enumerate(tokens)]
            after += p[i] * np.prod(each, axis=0)
        p = after
    return p


def subsets(weights, size):
    """Every set of `size` positions that are drawn without replacement in proportion to the
    weights, with its probability.
    """
    out = {}
    for order in itertools.permutations(np.flatnonzero(weights > 0), size):
        left, p = weights.copy(), 1.0
        for position in order:
            p *= left[position] / left.sum()
            left[position] = 0
        key = tuple(sorted(order))
        out[key] = out.get(key, 0.0) + p
    return out.items()


def reveal(p, count, weight, codes=P):
    """The distribution after `count` masked tokens got codes. `weight(i, j, y)` is the weight of
    the masked position j of state i whose candidate is y.
    """
    after = np.zeros(len(STATES))
    for i in np.flatnonzero(p):
        masked = np.flatnonzero(STATES[i] == K)
        for candidate in itertools.product(range(K), repeat=len(masked)):
            proposal = STATES[i].copy()
            proposal[masked] = candidate
            chance = np.prod([codes[i, j, proposal[j]] for j in masked])
            if not chance:
                continue
            weights = np.zeros(N)
            weights[masked] = [weight(i, j, proposal[j]) for j in masked]
            for positions, share in subsets(weights, min(count, len(masked))):
                z = STATES[i].copy()
                z[[*positions]] = proposal[[*positions]]
                after[INDEX[tuple(z.tolist())]] += p[i] * chance * share
    return after


def test_ancestral(chain):
    check(Ancestral(calls=3), independent_steps(chain, START, [(8, 12), (4, 8), (0, 4)]))


def test_released_fast(chain):
    """Stride 4: times 12, 8, 4 and 1, each but the last undoing one step, 4 below its time."""
    sampler = ReleasedFast(calls=4)
    assert call_times(sampler, PROCESS, N).tolist() == [12, 8, 4, 1]
    check(sampler, independent_steps(chain, START, [(8, 9), (4, 5), (3, 4), (0, 1)]))


def test_random_counts():
    p = START
    for count in (1, 1, 2):
        p = reveal(p, count, lambda i, j, y: 1.0)
    check(Counts(calls=3), p)


def test_a_fixed_order():
    order, p = (2, 0, 3, 1), START
    for count in (2, 2):
        p = reveal(p, count, lambda i, j, y: 1e-30 ** order.index(j))
    check(Counts(calls=2, order=order), p)


def test_confidence_counts():
    """log p of the candidate plus c Gumbel noise: positions drawn in proportion to p^(1 / c)."""
    p = START
    for call, count in enumerate((1, 1, 2)):
        c = 2.0 * (1 - (call + 1) / 3)
        p = reveal(p, count, lambda i, j, y, c=c: P[i, j, y] ** (1 / c) if c else 1.0)
    check(Counts(calls=3, order="confidence", noise=2.0), p)


# A network whose predictions do not depend on the other tokens. Truncation at 0.86 leaves masses of
# 0.87, 0.88, 0.9 and 0.98, so renormalised purities have other proportions.
FLAT = np.broadcast_to(
    [[0.87, 0.08, 0.05], [0.62, 0.26, 0.12], [0.45, 0.45, 0.1], [0.01, 0.01, 0.98]],
    (len(STATES), N, K),
)


def truncated(p, top_p):
    """Probabilities as the released code has them after truncation: the smallest set of codes whose
    sum reaches top_p, the others 0, and nothing renormalised.
    """
    order = np.argsort(-p, axis=-1)
    ranked = np.take_along_axis(p, order, -1)
    kept = np.cumsum(ranked, -1) - ranked < top_p
    out = np.zeros_like(p)
    np.put_along_axis(out, order, np.where(kept, ranked, 0), -1)
    return out


@pytest.mark.parametrize(
    "rule,weight,top_p",
    [(1, 0.0, 1.0), (2, 0.0, 0.86), pytest.param(2, 1.5, 0.86, marks=pytest.mark.slow)],
)
def test_prior_rules_are_the_released_arithmetic(rule, weight, top_p):
    """With truncation at 0.86, as the released models are sampled."""
    p = truncated(FLAT, top_p)
    purity = p.max(-1)
    score = purity / purity.max(-1, keepdims=True) if rule == 2 else np.ones((len(STATES), N))
    with np.errstate(divide="ignore"):
        power = np.where(p > 0, np.exp((1 + weight * score)[..., None] * np.log(p)), 0)
    codes = power / power.sum(-1, keepdims=True)

    sampler = PriorRule(calls=4, rule=rule, weight=weight)
    state = START
    for count in sampler.budgets(N)[:0:-1]:
        state = reveal(state, count, lambda i, j, y: score[i, j], codes)
    shape = StaticGuidance(truncated=top_p < 1).shape
    denoise = lambda z, t: shape(table(np.log(FLAT))(z, t), 1.0, top_p)
    check(RevealOnly(sampler), state, denoise)
    if rule == 2:
        renormalised = (p / p.sum(-1, keepdims=True)).max(-1)
        other = START
        for count in sampler.budgets(N)[:0:-1]:
            other = reveal(other, count, lambda i, j, y: renormalised[i, j], codes)
        with pytest.raises(AssertionError):
            check(RevealOnly(sampler), other, denoise)


def test_purity_counts_follow_the_probability_before_truncation():
    p = truncated(FLAT, 0.86)
    codes, state = p / p.sum(-1, keepdims=True), START
    for count in (2, 2):
        state = reveal(state, count, lambda i, j, y: p[i, j].max(), codes)
    shape = StaticGuidance(truncated=True).shape
    denoise = lambda z, t: shape(table(np.log(FLAT))(z, t), 1.0, 0.86)
    check(Counts(calls=2, order="purity"), state, denoise)


@dataclasses.dataclass(frozen=True)
class RevealOnly(Sampler):
    """The calls of a prior rule without its last one."""

    rule: PriorRule

    def plan(self, process, n, t_start):
        return self.rule.plan(process, n, t_start)[:1]

    def start(self, keys, process, n):
        return all_masked(keys, process, n)
