"""The planner against trying every plan."""

import itertools

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.samplers.call_planner import best_counts, fixed_order_cost, random_order_cost


def every_plan(n, calls):
    for cuts in itertools.combinations(range(1, n), calls - 1):
        yield tuple(np.diff([0, *cuts, n]).tolist())


def lost(counts, loss):
    known = np.append(0, np.cumsum(counts))
    return sum(loss(known[j], i) for j in range(len(counts)) for i in range(known[j], known[j + 1]))


@pytest.mark.parametrize("calls", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_no_plan_is_better(calls, kind):
    n, rng = 9, np.random.default_rng(calls)
    if kind == "random":
        h = np.sort(rng.exponential(size=n))[::-1]
        cost, loss = random_order_cost(h), lambda a, i: h[a] - h[i]
    else:
        c = np.sort(rng.exponential(size=(n, n)), axis=0)[::-1]
        cost, loss = fixed_order_cost(c), lambda a, i: c[a, i] - c[i, i]
    counts, least = best_counts(cost, calls)
    assert sum(counts) == n and len(counts) == calls and min(counts) >= 1
    np.testing.assert_allclose(lost(counts, loss), least, atol=1e-12)
    np.testing.assert_allclose(least, min(lost(p, loss) for p in every_plan(n, calls)), atol=1e-12)


def test_one_token_a_call_loses_nothing_and_equal_entropies_make_plans_equal():
    h = np.linspace(3, 1, 20)
    counts, least = best_counts(random_order_cost(h), 20)
    assert counts == (1,) * 20 and abs(least) < 1e-12
    assert abs(best_counts(random_order_cost(np.full(20, 2.0)), 3)[1]) < 1e-12


def test_it_is_fast_enough_for_a_thousand_tokens():
    h = 5 * np.exp(-np.arange(1024) / 300)
    counts, least = best_counts(random_order_cost(h), 25)
    even = random_order_cost(h)
    known = np.round(np.linspace(0, 1024, 26)).astype(int)
    assert least < sum(even[a, b] for a, b in zip(known, known[1:])) and sum(counts) == 1024


@pytest.mark.parametrize("calls", [0, 10])
def test_calls_out_of_range_are_one_sentence(calls):
    with pytest.raises(UserError, match="a plan for 9 tokens has 1..9 calls"):
        best_counts(random_order_cost(np.ones(9)), calls)
