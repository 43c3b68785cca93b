"""The sampler against exact posteriors, an oracle, a Python loop, and itself in other batches."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqd_jax.diffusion import schedules
from vqd_jax.errors import UserError
from vqd_jax.samplers.ancestral import Ancestral, start

K, T = 4, 6
SCHEDULES = ["paper", "released", "absorbing", "uniform"]


@pytest.fixture(params=SCHEDULES)
def process(request):
    return getattr(schedules, request.param)(T, K)


def keys(b, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(b))


def run(calls, process, denoise, z_T, key_rows):
    return jax.jit(lambda ks, z: Ancestral(calls=calls)(ks, process, denoise, z))(key_rows, z_T)


def table_denoiser(seed=0):
    """p(x_0 | z_t, t) as a table, (K + 1, K), that depends on the token and the time alone."""
    p = np.random.default_rng(seed).dirichlet(np.ones(K), size=(T + 1, K + 1))
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    return p, lambda z, t: log_p[jnp.broadcast_to(t[:, None], z.shape), z]


@pytest.mark.parametrize("calls", [1, 4, T])
def test_an_oracle_returns_the_data(process, calls):
    z_0 = jnp.array([[0, 1, 2, 3, 1], [3, 3, 0, 0, 2]])
    denoise = lambda z, t: 50.0 * jax.nn.one_hot(z_0, K)
    z = run(calls, process, denoise, start(keys(2, 7), process, 5), keys(2))
    np.testing.assert_array_equal(z, z_0)


def chi_square(tokens, p):
    """The tail probability of the counts; every state without mass must be absent."""
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=len(p))
    assert counts[p < 1e-12].sum() == 0, (counts, p)
    on = p * counts.sum() > 1
    return stats.chisquare(np.append(counts[on], counts[~on].sum() + 1e-9),
                           np.append(p[on], p[~on].sum() + 1e-9 / counts.sum()) * (counts.sum() + 1e-9)
                           / (p.sum() + 1e-9 / counts.sum()), ddof=0).pvalue


def test_a_strided_step_draws_from_the_exact_posterior(process, chain):
    """Two calls, T -> 3 -> 0, from every z_T that can occur: the states in between and at the end."""
    exact, n = chain(process), 12_000
    p, denoise = table_denoiser()
    seen = []

    def spy(z, t):
        seen.append(z)
        return denoise(z, t)

    z_T = [z for z in range(K + 1) if exact.between(0, T)[:K, z].sum() > 0]
    with jax.disable_jit():  # the scan runs as a Python loop, and shows its states
        end = Ancestral(calls=2)(keys(len(z_T)), process, spy, jnp.tile(jnp.array(z_T)[:, None], (1, n)))
    assert len(seen) == 2
    for i, z in enumerate(z_T):
        middle = exact.reverse(p[T, z], z, 3, T)
        assert chi_square(seen[1][i], middle) > 1e-4
        last = sum(middle[j] * exact.reverse(p[3, j], j, 0, 3) for j in range(K + 1) if middle[j] > 1e-12)
        assert chi_square(end[i], last) > 1e-4


def test_the_statistic_can_fail(chain):
    process = schedules.paper(T, K)
    p, _ = table_denoiser()
    want = chain(process).reverse(p[T, K], K, 3, T)
    draws = np.random.default_rng(0).choice(K + 1, 12_000, p=chain(process).reverse(p[T, K], K, 2, T))
    assert chi_square(draws, want) < 1e-4


@pytest.mark.parametrize("calls", [3, T])
def test_the_scan_is_the_python_loop(calls):
    process = schedules.paper(T, K)
    _, denoise = table_denoiser()
    z_T = start(keys(3, 7), process, 20)
    compiled = run(calls, process, denoise, z_T, keys(3))
    times = []

    def spy(z, t):
        times.append(np.unique(t).item())
        return denoise(z, t)

    with jax.disable_jit():
        looped = Ancestral(calls=calls)(keys(3), process, spy, z_T)
    np.testing.assert_array_equal(compiled, looped)
    assert times == {3: [6, 4, 2], T: [6, 5, 4, 3, 2, 1]}[calls]


@pytest.mark.parametrize("schedule", ["paper", "absorbing"])
def test_noise_belongs_to_the_image_and_not_to_the_batch(schedule):
    process = getattr(schedules, schedule)(T, K)
    _, denoise = table_denoiser()
    first, order = start(keys(4, 7), process, 30), jnp.array([3, 1, 0, 2])
    program = jax.jit(lambda ks, z: Ancestral(calls=4)(ks, process, denoise, z))
    together = program(keys(4), first)
    np.testing.assert_array_equal(program(keys(4)[order], first[order]), together[order])
    np.testing.assert_array_equal(program(keys(4)[2:3], first[2:3]), together[2:3])
    np.testing.assert_array_equal(start(keys(4, 7)[2:3], process, 30), first[2:3])
    assert (together[0] != together[1]).any() and (program(keys(4, 1), first) != together).any()


def test_start_has_the_end_of_the_process(process, chain):
    tokens = start(keys(2), process, 10_000)
    live = process.unmasked[-1]
    assert chi_square(tokens, np.append(np.full(K, live / K), 1 - live)) > 1e-4
    if process.unmasked[-1] == 0.1:  # paper: what is left of z_0 has no weight, so this is q(z_T | z_0) for any z_0
        np.testing.assert_allclose(chain(process).between(0, T)[2], np.append(np.full(K, live / K), 1 - live), atol=1e-12)


@pytest.mark.parametrize("calls", [0, T + 1])
def test_calls_out_of_range_are_one_sentence(calls):
    process = schedules.absorbing(T, K)
    with pytest.raises(UserError, match=f"calls must be in 1..{T}, got {calls}"):
        Ancestral(calls=calls)(keys(1), process, table_denoiser()[1], jnp.full((1, 3), K))
