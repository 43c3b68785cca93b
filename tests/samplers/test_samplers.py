"""Every sampler: an oracle gives the data, steps are the exact posterior, noise belongs to the image,
given tokens are kept, and plans are followed.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.core.errors import UserError
from vqd_jax.diffusion import schedules
from vqd_jax.diffusion.posterior import PosteriorCoefficients
from vqd_jax.samplers.ancestral import Ancestral, Remask, _uniform_codes, posterior_step
from vqd_jax.samplers.base import Constraint, call_times, phases, sample_loop, sample_prior
from vqd_jax.samplers.call_planner import best_counts, random_order_cost
from vqd_jax.samplers.counts import Counts, halton_ranks
from vqd_jax.samplers.released import PriorRule, ReleasedFast

K, T = 4, 6
SCHEDULES = ["paper", "released", "absorbing", "uniform", "cosine"]
SAMPLERS = {
    "ancestral": lambda calls: Ancestral(calls=calls),
    "remask": lambda calls: Remask(calls=calls, eta=0.3),
    "random": lambda calls: Counts(calls=calls),
    "confidence": lambda calls: Counts(calls=calls, order="confidence"),
    "purity": lambda calls: Counts(calls=calls, order="purity", counts="cosine"),
    "halton": lambda calls: Counts(calls=calls, order="halton"),
    "polished": lambda calls: Counts(calls=calls, polish=1, polish_from=0.2),
    "from the end": lambda calls: Counts(calls=calls, polish=1, polish_from=0.2, origin="process"),
    "released_fast": lambda calls: ReleasedFast(calls=calls),
    "prior_rule_1": lambda calls: PriorRule(calls=calls, rule=1),
    "prior_rule_2": lambda calls: PriorRule(calls=calls, rule=2, weight=0.5),
}


def keys(b, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(b))


def sample(sampler, process, denoise, b, n, seed=0, **options):
    """The path that users run: one compiled program from the sampler's own start."""
    return program(sampler, process, denoise, n, **options)(keys(b, seed))


def program(sampler, process, denoise, n, **options):
    return jax.jit(
        lambda ks: sample_loop(
            sampler, ks, process, denoise, sampler.start(ks, process, n), **options
        )
    )


def table_denoiser(seed=0):
    """p(x_0 | z_t, t) as a table, (K + 1, K), that depends on the token and the time alone."""
    p = np.random.default_rng(seed).dirichlet(np.ones(K), size=(T + 1, K + 1))
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    return p, lambda z, t: log_p[jnp.broadcast_to(t[:, None], z.shape), z]


def oracle_samples(name, process, z_0, calls):
    """The samples by a network that knows z_0 at each number of calls, all by one program."""
    denoise = lambda z, t: 60.0 * jax.nn.one_hot(z_0, K)
    b, n = z_0.shape

    def run(ks):
        samplers = map(SAMPLERS[name], calls)
        return [sample_loop(s, ks, process, denoise, s.start(ks, process, n)) for s in samplers]

    return jax.jit(run)(keys(b))


Z_0 = np.array([[0, 1, 2, 3, 1, 0, 0, 2, 3], [3, 3, 0, 0, 2, 1, 2, 3, 0]])


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_oracle_returns_the_data(name):
    for end in oracle_samples(
        name, schedules.paper(T, K), Z_0, (1, 4) if name == "random" else (4,)
    ):
        np.testing.assert_array_equal(end, Z_0)


@pytest.mark.parametrize("name,schedule", [("ancestral", "cosine"), ("from the end", "released")])
def test_an_oracle_with_other_schedules(name, schedule):
    (end,) = oracle_samples(name, getattr(schedules, schedule)(T, K), Z_0, (T,))
    np.testing.assert_array_equal(end, Z_0)


@pytest.mark.parametrize("name", ["remask", "released_fast"])
def test_an_oracle_without_masks(name):
    for end in oracle_samples(name, schedules.uniform(T, K), Z_0, (1, 3)):
        np.testing.assert_array_equal(end, Z_0)


@pytest.mark.parametrize("schedule", ["paper", "released", "absorbing", "cosine"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_plans_end_without_masks_at_every_number_of_calls(name, schedule):
    """Their times fall, and after the last call nothing is left of the noise: an exact step to t = 0,
    or no [MASK].
    """
    process = getattr(schedules, schedule)(T, K)
    for calls in range(2 if name in ("polished", "from the end") else 1, T + 1):
        plan = phases(SAMPLERS[name](calls), process, 9)
        times = np.concatenate([phase.times for phase in plan])
        assert len(times) == calls and (np.diff(times) <= 0).all() and times.min() >= 1
        last = plan[-1].coefficients
        if isinstance(last, PosteriorCoefficients):
            assert last.stay_masked[-1] == last.remask[-1] == 0 and last.from_model[-1] == 1
            assert last.replace_same[-1] == last.replace_other[-1] == 0
        for phase in plan:
            if isinstance(phase.coefficients, dict):  # of Counts
                left = phase.coefficients["masked_before"], phase.coefficients["masked_after"]
                assert left[0][0] == 9 and (left[0][1:] == left[1][:-1]).all()
                assert (left[1] < left[0]).all() and (len(plan) == 2 or left[1][-1] == 0)


def chi_square(tokens, p):
    """The tail probability of the counts; every state without mass must be absent."""
    p = np.asarray(p, np.float64)
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=len(p))
    assert counts[p < 1e-9].sum() <= 2, (counts, p)
    on = p * counts.sum() > 1
    return stats.chisquare(
        np.append(counts[on], counts[~on].sum() + 1e-9),
        np.append(p[on], p[~on].sum() + 1e-9 / counts.sum())
        * (counts.sum() + 1e-9)
        / (p.sum() + 1e-9 / counts.sum()),
        ddof=0,
    ).pvalue


@pytest.mark.parametrize("schedule", SCHEDULES[:-1])
def test_strided_steps_draw_from_the_exact_posterior(schedule, chain):
    """Two calls, T -> 3 -> 0, from every z_T that can occur: the states in between and at the end."""
    process, n = getattr(schedules, schedule)(T, K), 12_000
    exact, (p, denoise) = chain(process), table_denoiser()
    z_T = [z for z in range(K + 1) if exact.between(0, T)[:K, z].sum() > 0]
    start = jnp.tile(jnp.array(z_T)[:, None], (1, n))
    end, seen = jax.jit(
        lambda ks, z: sample_loop(Ancestral(calls=2), ks, process, denoise, z, trace=True)
    )(keys(len(z_T)), start)
    for i, z in enumerate(z_T):
        middle = exact.reverse(p[T, z], z, 3, T)
        assert chi_square(seen[0][i], middle) > 1e-4
        last = sum(
            middle[j] * exact.reverse(p[3, j], j, 0, 3) for j in range(K + 1) if middle[j] > 1e-12
        )
        assert chi_square(end[i], last) > 1e-4
        np.testing.assert_array_equal(seen[1][i], end[i])


CALLS, ROWS = 4, 8
FREE = Constraint(mask=np.zeros((ROWS, 16), bool), tokens=np.zeros((ROWS, 16), np.int32))


@functools.cache
def loop(name, trace=False):
    """`sample_loop` from z at time T, compiled once for all tests: by a scan with its trace, or in a
    window.
    """
    process, sampler, (_, denoise) = schedules.paper(T, K), SAMPLERS[name](CALLS), table_denoiser()
    run = functools.partial(sample_loop, sampler)
    if trace:
        return jax.jit(lambda ks, z: run(ks, process, denoise, z, trace=True))
    return jax.jit(
        lambda ks, z, constraint, window: run(
            ks, process, denoise, z, constraint=constraint, window=window
        )
    )


def begin(name, ks):
    return SAMPLERS[name](CALLS).start(ks, schedules.paper(T, K), 16)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_scan_is_the_python_loop(name):
    """The loop of a window, also of a call at a time, gives the states of the scan; and so do the
    updates themselves, of which three samplers have all kinds.
    """
    process, sampler, (_, denoise) = schedules.paper(T, K), SAMPLERS[name](CALLS), table_denoiser()
    ks, z, looped = keys(ROWS), begin(name, keys(ROWS)), []
    end, states = loop(name, trace=True)(ks, z)
    before = [z, *states]
    windows = [(0, CALLS), (0, CALLS + 9), (1, CALLS - 1), *((j, j + 1) for j in range(CALLS))]
    for first, after in windows:
        got = loop(name)(ks, before[first], FREE, (first, after))
        np.testing.assert_array_equal(got, before[min(after, CALLS)])
    assert len(call_times(sampler, process, 16)) == CALLS and (np.asarray(end) < K).all()
    if name not in ("ancestral", "confidence", "prior_rule_2"):
        return
    for phase in phases(sampler, process, 16):
        for j, time in enumerate(phase.times):
            row = jax.tree.map(lambda x: jnp.asarray(x[j]), phase.coefficients)
            logits = denoise(z, jnp.full(ROWS, time))
            z = phase.update(ks, len(looped), process, logits, z, row).astype(z.dtype)
            looped.append(z)
    np.testing.assert_array_equal(states, looped)
    np.testing.assert_array_equal(end, looped[-1])
    assert len(looped) == CALLS


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_belongs_to_the_image_and_not_to_the_batch(name):
    run = lambda ks: np.asarray(loop(name)(ks, begin(name, ks), FREE, (0, CALLS)))
    together, order = run(keys(ROWS)), jnp.array([3, 1, 0, 2, 7, 6, 5, 4])
    np.testing.assert_array_equal(run(keys(ROWS)[order]), together[order])
    others = run(jnp.concatenate([keys(2), keys(ROWS, 1)[2:]]))
    np.testing.assert_array_equal(others[:2], together[:2])
    assert (together[0] != together[1]).any() and (others[2:] != together[2:]).any()
    if name in ("ancestral", "random", "halton"):  # and not on the number of rows
        alone = sample(SAMPLERS[name](CALLS), schedules.paper(T, K), table_denoiser()[1], 1, 16)
        np.testing.assert_array_equal(alone, together[:1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_tokens_are_equal_in_the_result(name):
    for seed in (0, 1):
        rng, ks = np.random.default_rng(seed), keys(ROWS)
        mask, tokens = rng.random((ROWS, 16)) < 0.4, rng.integers(0, K, (ROWS, 16))
        known = Constraint(mask=mask, tokens=tokens.astype(np.int32))
        for calls in range(1, CALLS + 1):
            end = np.asarray(loop(name)(ks, begin(name, ks), known, (0, calls)))
            np.testing.assert_array_equal(end[mask], tokens[mask])
        assert (end < K).all() and len(np.unique(end[~mask])) == K


def test_a_function_for_each_call():
    """Runs of the same function share a scan, and the calls get theirs in order."""
    process, sampler = schedules.paper(T, K), Ancestral(calls=T)
    zeros, ones = (
        lambda z, t, i=i: jnp.broadcast_to(60.0 * jax.nn.one_hot(i, K)[None, None], (*z.shape, K))
        for i in (0, 1)
    )
    end = sample(sampler, process, [zeros] * 5 + [ones], 4, 50)
    np.testing.assert_array_equal(
        end, 1
    )  # the last call decides: t = 1 -> 0 replaces what the model does not believe in
    _, states = sample(sampler, process, [ones] * 5 + [zeros], 4, 50, trace=True)
    assert (states[4] == 1).sum() > 100 and (states[4] == 0).sum() < 50


ORDERS = ["random", "confidence", "purity", "halton", tuple(range(15, -1, -1))]


@pytest.mark.parametrize(
    "order,calls,counts",
    [
        ("random", 1, "uniform"),
        ("random", 16, "cosine"),
        *((order, 3, "cosine") for order in ORDERS),
        (ORDERS[-1], 16, "uniform"),
    ],
    ids=str,
)
def test_counts_reveals_exact_numbers_and_keeps_them(order, calls, counts):
    process, (_, denoise) = schedules.absorbing(T, K), table_denoiser()
    sampler = Counts(calls=calls, order=order, counts=counts)
    _, states = sample(sampler, process, denoise, 5, 16, trace=True)
    masked = np.asarray(states) == K
    left = masked.sum(-1)
    assert (
        (left == left[:, :1]).all()
        and (np.diff(np.append(16, left[:, 0])) < 0).all()
        and left[-1, 0] == 0
    )
    for before, after in zip(states, states[1:]):
        kept = np.asarray(before) != K
        np.testing.assert_array_equal(np.asarray(before)[kept], np.asarray(after)[kept])
    if order == tuple(range(15, -1, -1)) and calls == 16:
        assert [np.flatnonzero(row[0]).tolist() for row in masked] == [
            list(range(15 - i)) for i in range(16)
        ]
    if counts == "cosine" and calls == 3:
        assert left[:, 0].tolist() == [14, 8, 0]


def test_a_plan_is_followed_and_checked():
    process, (_, denoise) = schedules.absorbing(T, K), table_denoiser()
    _, states = sample(Counts(calls=3, counts=(1, 5, 3)), process, denoise, 2, 9, trace=True)
    assert (np.asarray(states) == K).sum(-1).tolist() == [[8, 8], [3, 3], [0, 0]]
    for counts in ((1, 5), (1, 5, 4), (0, 5, 4)):
        with pytest.raises(
            UserError, match="a plan for 3 calls needs 3 positive numbers with the sum 9"
        ):
            sample(Counts(calls=3, counts=counts), process, denoise, 2, 9)


@pytest.mark.parametrize("t_start", [3, T])
@pytest.mark.parametrize("polish", [0, 1])
@pytest.mark.parametrize("counts", ["uniform", "planned", "listed"])
def test_counts_are_for_the_tokens_between_the_start_and_polish(t_start, polish, counts):
    """What is [MASK] at t_start is revealed by the calls before polish, except what polish starts
    with: of 12 tokens the schedule masks 6 at t = 3 of 6, and 2 at t = 1.
    """
    process, (_, denoise) = schedules.absorbing(T, K), table_denoiser()
    sampler = Counts(calls=3 + polish, polish=polish, polish_from=1 / t_start)
    total = {3: 6, T: 12}[t_start] - 2 * polish
    if counts == "planned":
        entropy = np.geomspace(3.0, 0.01, 12)
        sampler = sampler.planned(process, entropy, t_start)
        first = 12 - {3: 6, T: 12}[t_start]
        cost = random_order_cost(entropy)
        lost = lambda each: sum(
            cost[a, b] for a, b in itertools.pairwise(first + np.append(0, np.cumsum(each)))
        )
        plans = [p for p in itertools.product(range(1, total), repeat=3) if sum(p) == total]
        assert lost(sampler.counts) == pytest.approx(min(map(lost, plans)), abs=1e-9)
    elif counts == "listed":
        sampler = dataclasses.replace(sampler, counts=(1, 1, total - 2))
    revealed = sampler.plan(process, 12, t_start)[0].coefficients
    left = np.append(revealed["masked_before"], revealed["masked_after"][-1])
    assert left[0] == total + 2 * polish and left[-1] == 2 * polish and (np.diff(left) < 0).all()
    if counts != "planned" or (t_start == T and not polish):
        return  # sampled in other tests
    z_0 = jnp.asarray(np.random.default_rng(0).integers(0, K, (4, 12)))
    run = jax.jit(
        lambda ks: sample_loop(
            sampler,
            ks,
            process,
            denoise,
            sampler.noised(ks, process, z_0, t_start),
            t_start=t_start,
            trace=True,
        )
    )
    end, states = run(keys(4))
    masked = (np.asarray(states) == K).sum(-1)
    assert (np.asarray(end) < K).all() and len(states) == 3 + polish
    assert (masked[2] == 2 * polish).all()
    revealed = -np.diff(masked[:3, 0], prepend=total + 2 * polish)
    assert sum(revealed) == total and min(revealed) >= 1
    assert tuple(revealed) == sampler.counts


def test_a_plan_that_does_not_fit_is_one_sentence():
    process = schedules.absorbing(T, K)
    entropy = np.linspace(3, 1, 12)
    with pytest.raises(UserError, match="calls must be in 1..6, so that each reveals a token"):
        Counts(calls=7).planned(process, entropy, 3)
    with pytest.raises(UserError, match="needs 2 positive numbers with the sum 6, got"):
        Counts(calls=2, counts=(6, 6)).plan(process, 12, 3)
    with pytest.raises(UserError, match="polish starts at time 1 and can have at most as many"):
        Counts(calls=5, polish=2).plan(process, 12, 3)
    assert best_counts(random_order_cost(entropy), 3)[0] == (
        Counts(calls=3).planned(process, entropy, T).counts
    )


@pytest.mark.parametrize("k", [1, 2, 7, 46_341, 50_000])
def test_uniform_codes_of_every_codebook(k):
    """Both draws of a step are uniform and independent, also where k (k - 1) exceeds int32."""
    n, bins = 400_000, min(k, 100)
    draws = jax.jit(_uniform_codes, static_argnums=(1, 2))(keys(1), n, k)
    groups = []
    for draw, codes in zip(draws, (k, max(k - 1, 1)), strict=True):
        draw = np.asarray(draw)[0]
        assert draw.min() >= 0 and draw.max() < codes
        groups.append(draw * bins // codes)
        expected = np.bincount(np.arange(codes) * bins // codes, minlength=bins)
        counts, likely = np.bincount(groups[-1], minlength=bins), expected > 0
        assert counts[~likely].sum() == 0
        if likely.sum() > 1:
            expected = expected[likely] / expected.sum() * n
            assert stats.chisquare(counts[likely], expected).pvalue > 1e-4
    if k > 4:
        thirds = [np.asarray(draw)[0] * 3 // codes for draw, codes in zip(draws, (k, k - 1))]
        pairs = np.bincount(3 * thirds[0] + thirds[1], minlength=9).reshape(3, 3)
        assert stats.chi2_contingency(pairs).pvalue > 1e-4


@pytest.mark.slow  # 3 s
def test_a_step_reaches_every_code_of_a_large_codebook():
    """From [MASK] any code, from a code any other one."""
    k, n = 50_000, 8
    process = schedules.paper(T, k)
    row = [0.0] * len(PosteriorCoefficients._fields)
    always = PosteriorCoefficients(*row)._replace(replace_same=1.0, replace_other=1.0)
    step = jax.jit(lambda ks, z: posterior_step(ks, 0, process, jnp.zeros((8, n, k)), z, always))
    for z in (k, 123):
        drawn = np.asarray(step(keys(8), jnp.full((8, n), z)))
        assert (drawn != z).all() and drawn.min() >= 0 and 43_000 < drawn.max() < k


def test_the_halton_order_spreads_out():
    places = halton_ranks(64).reshape(8, 8)
    assert sorted(places.ravel()) == list(range(64))
    for quarter in (places[:4, :4], places[:4, 4:], places[4:, :4], places[4:, 4:]):
        assert 3 <= (quarter < 16).sum() <= 5


def test_start_has_the_end_of_the_process(chain):
    for schedule in SCHEDULES:
        process = getattr(schedules, schedule)(T, K)
        tokens = sample_prior(keys(2), process, 10_000)
        live = process.unmasked[-1]
        assert chi_square(tokens, np.append(np.full(K, live / K), 1 - live)) > 1e-4


@pytest.mark.parametrize("make", [Ancestral, Remask, ReleasedFast])
@pytest.mark.parametrize("calls", [0, T + 1])
def test_calls_out_of_range_are_one_sentence(make, calls):
    with pytest.raises(UserError, match=f"calls must be in 1..{T}, got {calls}"):
        sample(make(calls=calls), schedules.absorbing(T, K), table_denoiser()[1], 1, 3)


@pytest.mark.parametrize(
    "make,sentence",
    [
        (
            lambda: Counts(calls=4, order="best"),
            "order of counts must be one of random, confidence, purity, halton, got 'best'",
        ),
        (
            lambda: Counts(calls=4, counts="linear"),
            "counts must be uniform, cosine or a list of numbers, got 'linear'",
        ),
        (lambda: Counts(calls=4, polish=4), "0 <= polish < calls"),
        (lambda: Remask(calls=4, eta=1.5), r"eta in \[0, 1\], got 1.5"),
        (lambda: PriorRule(calls=4, rule=3), "a rule of 1 or 2"),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_counts_needs_a_mask_and_a_token_for_each_call():
    with pytest.raises(UserError, match="never masks: use ancestral"):
        sample(Counts(calls=3), schedules.uniform(T, K), table_denoiser()[1], 1, 9)
    with pytest.raises(
        UserError, match="calls must be in 1..9, so that each reveals a token, got 10"
    ):
        sample(Counts(calls=10), schedules.absorbing(T, K), table_denoiser()[1], 1, 9)
    with pytest.raises(UserError, match="a square grid of tokens, got 8"):
        sample(
            Counts(calls=2, order="halton"), schedules.absorbing(T, K), table_denoiser()[1], 1, 8
        )


class TestReleased:
    def test_the_numbers_of_calls_are_those_of_the_released_strides(self):
        process = schedules.released(100, 8)
        for stride, calls in ((2, 51), (3, 34), (4, 26), (5, 21), (10, 11)):
            times = call_times(ReleasedFast(calls=calls), process, 4)
            assert times[0] == 100 and times[-1] == 1 and (np.diff(times[:-1]) == -stride).all()

    @pytest.mark.slow  # 5 s
    def test_a_quarter_is_still_masked_at_the_last_call_of_stride_4(self):
        process = schedules.released(100, 8)
        denoise = lambda z, t: jnp.zeros((*z.shape, 8))
        _, states = sample(ReleasedFast(calls=26), process, denoise, 4, 4000, trace=True)
        assert abs((np.asarray(states[-2]) == 8).mean() - 0.24) < 0.015
        _, states = sample(ReleasedFast(calls=11), process, denoise, 4, 4000, trace=True)
        assert abs((np.asarray(states[-2]) == 8).mean() - 0.66) < 0.015
        _, states = sample(Ancestral(calls=25), process, denoise, 4, 4000, trace=True)
        assert abs((np.asarray(states[-2]) == 8).mean() - 0.03) < 0.01

    @pytest.mark.parametrize(
        "calls,per_call,left",
        [(100, 1024, 0), (50, 1024, 10), (25, 1024, 21), (10, 1024, 69), (100, 10, 0)],
    )
    def test_prior_rule_spends_the_released_budgets(self, calls, per_call, left):
        process = schedules.absorbing(100, 8)
        sampler = PriorRule(calls=calls, rule=1, per_call=per_call)
        plan = sampler.plan(process, 1024, 100)
        assert (
            1024 - plan[0].coefficients.sum() == left
            and (plan[0].coefficients <= per_call + 1).all()
        )
        told = np.unique(plan[0].times)
        assert len(told) == calls - 1 and plan[1].times.tolist() == [100 // calls]

    def test_purity_goes_to_the_sure_positions_first(self):
        process = schedules.absorbing(10, 8)
        sure = jnp.where(jnp.arange(64) < 16, 9.0, 0.0)
        denoise = lambda z, t: jnp.broadcast_to(
            sure[None, :, None] * jax.nn.one_hot(2, 8)[None, None], (*z.shape, 8)
        )
        first = {}
        for rule in (1, 2):
            _, states = sample(
                PriorRule(calls=10, rule=rule), process, denoise, 200, 64, trace=True
            )
            first[rule] = (np.asarray(states[1])[:, :16] != 8).mean()
        assert first[2] > 2 * first[1] > 0.2
