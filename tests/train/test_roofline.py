"""The time of a step by hand, on a chip of round numbers."""

import dataclasses

import pytest

from vqd_jax.runtime.hardware import Chip
from vqd_jax.train.cost.compiled import Collective
from vqd_jax.train.cost.roofline import Bytes, forecast, speed

GPU = Chip("H100 of round numbers", peak=1e15, memory=100e9, bandwidth=2e12, link=400e9)
TPU = dataclasses.replace(GPU, name="TPU of round numbers")


def group(*devices):
    return Collective("all-reduce", ("batch",), 10**9, (devices,), 1)


def test_the_greater_of_compute_and_memory_and_then_the_exchange():
    size = Bytes(
        arguments=40 * 10**9, outputs=30 * 10**9, in_place=20 * 10**9, temporaries=15 * 10**9
    )
    f = forecast(
        TPU,
        size,
        20 * 10**12,
        [group(0, 1), Collective("all-gather", ("batch",), 10**9, ((0, 1, 2),), 2)],
    )
    assert size.peak == 65 * 10**9 and f.fits
    assert f.compute == pytest.approx(0.02) and f.memory == pytest.approx(0.05)
    assert f.communication == pytest.approx((1e9 + 4e9) / 400e9) and f.seconds == pytest.approx(
        0.05 + 5 / 400
    )
    assert forecast(TPU, size, 20 * 10**12, [], micro_batches=4).memory == pytest.approx(
        (70e9 + 8 * 15e9) / 2e12
    )
    assert forecast(TPU, size, 200 * 10**12, []).seconds == pytest.approx(0.2)
    assert not forecast(dataclasses.replace(TPU, memory=64.9e9), size, 0, []).fits


@pytest.mark.parametrize(
    "devices,want",
    [
        ((0, 1, 2, 3), 400e9),
        ((8, 9), 400e9),  # inside a machine
        ((0, 8), 50e9),
        ((0, 1, 8, 9), 100e9),  # one adapter, two
        (tuple(range(16)), 400e9),
        ((6, 7, 8), 50e9),
    ],
)  # eight: as fast as the link; the machine with fewest
def test_gpus_leave_their_machine_through_the_adapters_of_a_group(devices, want):
    assert speed(GPU, group(*devices)) == want
    assert speed(TPU, group(*devices)) == TPU.link
