"""The toy of docs/diffusion.md: how far each sampler is from the data with a perfect denoiser.

Eight tokens of a Markov chain over three codes, with exact conditional marginals as the network, so
the distance is the sampler's own.
"""

import functools
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.base import sample_loop
from vqd_jax.samplers.call_planner import best_counts, fixed_order_cost, random_order_cost
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.released import ReleasedFast

STAY, N, CODES = 0.88, 8, 3
CHAIN = np.full((CODES, CODES), (1 - STAY) / 2) + np.eye(CODES) * (STAY - (1 - STAY) / 2)


def perfect(z, t):
    """log p(x_i | the known tokens), by forward and backward messages."""
    known = jax.nn.one_hot(z, CODES)
    evidence = jnp.where((z == CODES)[..., None], 1.0, known)
    step = jnp.asarray(CHAIN, jnp.float32)
    pass_on = lambda message, e: ((message * e) @ step, message)
    flat = jnp.full((z.shape[0], CODES), 1 / CODES)
    _, forward = jax.lax.scan(pass_on, flat, jnp.moveaxis(evidence, 1, 0))
    _, backward = jax.lax.scan(
        pass_on, jnp.ones_like(flat), jnp.moveaxis(evidence, 1, 0), reverse=True
    )
    return jnp.log(jnp.moveaxis(forward * backward * jnp.moveaxis(evidence, 1, 0), 0, 1) + 1e-30)


@functools.cache
def truth():
    index = np.arange(CODES**N)
    digits = np.stack([index // CODES**i % CODES for i in range(N)], 1)
    return digits, np.prod(
        [CHAIN[digits[:, i], digits[:, i + 1]] for i in range(N - 1)], axis=0
    ) / CODES


def total_variation(sampler, draws=400_000):
    process = schedules.absorbing(100, CODES)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(draws))
    run = jax.jit(
        lambda ks: sample_loop(sampler, ks, process, perfect, sampler.start(ks, process, N))
    )
    tokens = np.asarray(run(keys))
    counts = np.bincount(tokens @ CODES ** np.arange(N), minlength=CODES**N)
    return np.abs(counts / draws - truth()[1]).sum() / 2


def conditional_entropy(order=None):
    """H(i-th token of the order | its first a), for random orders their mean over the i that are
    left.
    """
    digits, p = truth()

    def joint(positions):
        if not len(positions):
            return 0.0
        mass = np.bincount(digits[:, positions] @ CODES ** np.arange(len(positions)), p)
        mass = mass[mass > 0]
        return -(mass * np.log(mass)).sum()

    if order is not None:
        return np.array(
            [
                [
                    joint([*order[:a], order[i]]) - joint(list(order[:a])) if i >= a else 0
                    for i in range(N)
                ]
                for a in range(N)
            ]
        )
    out = []
    for a in range(N):
        gains = [
            joint([*some, i]) - joint(list(some))
            for some in combinations(range(N), a)
            for i in range(N)
            if i not in some
        ]
        out.append(np.mean(gains))
    return np.array(out)


SPREAD = (0, 4, 2, 6, 1, 5, 3, 7)
TOY = [  # sampler, the total variation at 4 and 5 calls; 400,000 draws have a floor of 0.013
    ("released_fast", lambda c: ReleasedFast(calls=c), (0.520, 0.681)),
    ("ancestral", lambda c: Ancestral(calls=c), (0.337, 0.270)),
    ("counts", lambda c: Counts(calls=c), (0.247, 0.082)),
    (
        "planned",
        lambda c: Counts(
            calls=c, counts=best_counts(random_order_cost(conditional_entropy()), c)[0]
        ),
        (0.140, 0.081),
    ),
    ("confidence_1", lambda c: Counts(calls=c, order="confidence", noise=1.0), (0.229, 0.405)),
    ("confidence_4.5", lambda c: Counts(calls=c, order="confidence", noise=4.5), (0.196, 0.182)),
    ("spread", lambda c: Counts(calls=c, order=SPREAD), (0.301, 0.014)),
    (
        "spread_planned",
        lambda c: Counts(
            calls=c,
            order=SPREAD,
            counts=best_counts(fixed_order_cost(conditional_entropy(SPREAD)), c)[0],
        ),
        (0.013, 0.013),
    ),
]


@pytest.mark.slow  # 100 s; test_exact_distribution.py is the quick one
@pytest.mark.parametrize("name,make,want", TOY, ids=[row[0] for row in TOY])
def test_the_perfect_denoiser_toy(name, make, want):
    for calls, expected in zip((4, 5), want):
        got = total_variation(make(calls))
        print(f"{name} {calls} calls: {got:.3f}, table {expected:.3f}")
        assert abs(got - expected) < 0.006
