"""The bound of held-out records: times, error and interval."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers.diffusion_stage import N, make
from vqd_jax.config import build
from vqd_jax.data.source import Record
from vqd_jax.diffusion import schedules
from vqd_jax.eval.held_out import Bound
from vqd_jax.stages.diffusion import DiffusionStage

STEPS = 12
TERMS = np.append(9.0, np.random.default_rng(0).gamma(2, size=STEPS - 1)).astype(np.float32)


class Table(DiffusionStage):
    """The bound at t is TERMS[t - 1] plus the record's first token, whatever the noise."""

    def predict(self, params, z_t, t, ids, drop, **dropout):
        return jnp.zeros((*z_t.shape, self.process.k))

    def terms(self, logits, z_0, z_t, t):
        bound = jnp.asarray(TERMS)[t - 1][:, None] + z_0
        return bound, bound


class Texts:
    """A source without images."""

    fingerprint, skipped = "", {}

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        raise NotImplementedError


@pytest.fixture(scope="module")
def stage():
    plain = make()
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    return Table(**fields | {"process": schedules.paper(STEPS, 3)})


def estimates(stage, draws, rows=3000):
    keys = jax.random.split(jax.random.key(1), rows)
    zeros = jnp.zeros((rows, N), jnp.int32)
    return np.asarray(stage.bound({}, keys, zeros, zeros[:, :3], draws), np.float64)


def test_as_many_draws_as_times_take_each_in_turn(stage):
    np.testing.assert_allclose(estimates(stage, STEPS, 50), TERMS.sum(), rtol=1e-5)


@pytest.mark.parametrize("draws", [1, 2, 5, 2 * STEPS])
def test_fewer_are_unbiased_and_hold_the_first_time(stage, draws):
    """The variance is that of the other times alone, so the first, largest term adds none."""
    got = estimates(stage, draws)
    assert abs(got.mean() - TERMS.sum()) < 4.5 * got.std() / np.sqrt(len(got)) + 1e-4
    if draws == 1:
        assert got.max() == pytest.approx(STEPS * TERMS[0])
        return
    rest, strata = TERMS[1:].astype(np.float64), draws - 1
    # each stratum covers a piece of [0, STEPS - 1), in which time t has the length of its overlap
    edges, variance = np.linspace(0, STEPS - 1, strata + 1), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        p = np.clip(np.minimum(high, np.arange(1, STEPS)) - np.maximum(low, np.arange(11)), 0, None)
        p *= strata / (STEPS - 1)
        variance += (p @ rest**2 - (p @ rest) ** 2) * ((STEPS - 1) / strata) ** 2
    assert got.var() == pytest.approx(variance, rel=0.15, abs=1e-6)
    assert got.min() >= TERMS[0]


def test_the_result_has_its_error_over_records(stage, capsys):
    """Draws rise to every time in turn where the budget allows, so only records differ. A bar counts
    the records.
    """
    levels = np.array([0, 1, 1, 2, 0])
    source = Texts([Record(item=str(i), captions=("a",)) for i in levels])
    bound = Bound(
        stage=stage,
        source=source,
        tokens=np.repeat(levels[:, None], N, 1).astype(np.int32),
        tokenizer=build.BytePair.train(["a"], vocabulary=300, length=3),
        draws=2,
    )
    got = bound.measures({}, [0, 1, 2, 3, 4], budget=5 * STEPS + 3, description="bound of five")
    assert "bound of five: 5/5 image" in capsys.readouterr().err
    nats = TERMS.sum() + STEPS * levels
    low, high = stats.t.interval(0.95, 4, loc=nats.mean(), scale=stats.sem(nats))
    assert got == {
        "nats_per_token": pytest.approx(nats.mean()),
        "nats_per_token_interval": pytest.approx([low, high]),
        "nats_per_token_standard_error": pytest.approx(stats.sem(nats)),
        "bits_per_token": pytest.approx(nats.mean() / np.log(2)),
        "bits_per_token_interval": pytest.approx([low / np.log(2), high / np.log(2)]),
        "bits_per_token_standard_error": pytest.approx(stats.sem(nats) / np.log(2)),
        "images": 5,
        "draws": STEPS,
    }
    assert bound.measures({}, [0, 1], budget=9)["draws"] == 4
    assert bound.measures({}, [0, 1])["draws"] == 2
