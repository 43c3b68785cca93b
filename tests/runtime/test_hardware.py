"""The table of accelerators against figures that follow from how the chips are built, and the names
that JAX gives them.
"""

import subprocess

import jax
import pytest

from helpers import ROOT
from vqd_jax.runtime.hardware import CHIPS, chip, describe_machine

NVLINK, PCIE = 25e9, 16 / 8 * 1e9  # bytes/s of one link, and of 16 lanes for each gigatransfer/s

# cores x products and sums in a clock of each x clock; wires of the memory x bits/s of each; links
BUILT = [
    ("NVIDIA H100 80GB HBM3", 132 * 4096 * 1.83e9, 5120 * 5.234e9, 18 * NVLINK),
    ("NVIDIA H100 PCIe", 114 * 4096 * 1.62e9, 5120 * 3.125e9, 32 * PCIE),
    ("NVIDIA H200", 132 * 4096 * 1.83e9, 6144 * 6.25e9, 18 * NVLINK),
    ("NVIDIA A100-SXM4-40GB", 108 * 2048 * 1.41e9, 5120 * 2.43e9, 12 * NVLINK),
    ("NVIDIA A100-SXM4-80GB", 108 * 2048 * 1.41e9, 5120 * 3.186e9, 12 * NVLINK),
    ("NVIDIA A100-PCIE-40GB", 108 * 2048 * 1.41e9, 5120 * 2.43e9, 16 * PCIE),
    ("NVIDIA A100 80GB PCIe", 108 * 2048 * 1.41e9, 5120 * 3.024e9, 16 * PCIE),
    ("NVIDIA L4", 58 * 1024 * 2.04e9, 192 * 12.5e9, 16 * PCIE),
    ("NVIDIA B200", 148 * 8192 * 1.856e9, 8192 * 7.8e9, 36 * NVLINK),
    ("NVIDIA A10G", 80 * 512 * 1.71e9, 384 * 12.5e9, 16 * PCIE),
    ("NVIDIA L40S", 142 * 1024 * 2.49e9, 384 * 18e9, 16 * PCIE),
    ("Tesla V100-SXM2-16GB", 80 * 1024 * 1.53e9, 4096 * 1.758e9, 6 * NVLINK),
    ("Tesla V100-SXM2-32GB", 80 * 1024 * 1.53e9, 4096 * 1.758e9, 6 * NVLINK),
    ("TPU v2", 2 * 128**2 * 0.7e9, 700e9 * 8 / 2, 4 * 62e9 / 2),  # half a chip each
    ("TPU v3", 2 * 2 * 128**2 * 0.94e9, 900e9 * 8 / 2, 4 * 82e9 / 2),
    ("TPU7x", 4614e12 / 4, 4 * 1024 * 7.2e9, 9.6e12 / 8 / 4),  # as announced, in 8 bits
    ("Tesla T4", 40 * 1024 * 1.59e9, 256 * 10e9, 8 * PCIE),
    ("TPU v4", 8 * 2 * 128**2 * 1.05e9, 4096 * 2.4e9, 6 * 50e9),
    ("TPU v5 lite", 4 * 2 * 128**2 * 1.5e9, 2048 * 3.2e9, 4 * 50e9),
    ("TPU v5p", 8 * 2 * 128**2 * 1.75e9, 6144 * 3.6e9, 6 * 100e9),
    (
        "TPU v6 lite",
        197e12 * 4.66,
        2 * 8 * 819e9,
        2 * 200e9,
    ),  # as it was announced, against the v5e
]


@pytest.mark.parametrize(
    "kind,peak,bandwidth,link", BUILT, ids=lambda x: x if isinstance(x, str) else ""
)
def test_the_figures_are_those_that_the_chip_is_built_for(kind, peak, bandwidth, link):
    found = chip(kind)
    assert found.peak == pytest.approx(peak, rel=0.003)
    assert found.bandwidth == pytest.approx(bandwidth / 8, rel=0.03)
    assert found.link == pytest.approx(link, rel=0.01)
    named = [int(word[:-2]) * 1e9 for word in kind.replace("-", " ").split() if word.endswith("GB")]
    assert not named or found.memory == named[0]


def test_clocks_are_the_peak_by_the_matrix_units():
    """FLOP of a device in a cycle, by the size and number of its matrix units."""
    units = {
        "TPU v2": 128**2,
        "TPU v3": 2 * 128**2,
        "TPU v4": 8 * 128**2,
        "TPU v5e": 4 * 128**2,
        "TPU v5p": 8 * 128**2,
        "TPU v6e": 4 * 256**2,
    }
    for kind, products in units.items():
        assert chip(kind).peak / chip(kind).clock == pytest.approx(2 * products, rel=0.003)
    assert {x.name for x in CHIPS.values() if x.clock} == {*units}


def test_every_chip_is_checked_above():
    assert {chip(kind) for kind, *_ in BUILT} == {*CHIPS.values()}


@pytest.mark.parametrize(
    "one,other", [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")]
)
def test_both_names_of_a_tpu(one, other):
    assert chip(one) is chip(other)


@pytest.mark.parametrize(
    "kind", ["", "cpu", "TPU v99", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090"]
)
def test_what_is_not_in_the_table_is_unknown(kind):
    assert chip(kind) is None


def test_a_cpu_is_unknown():
    assert chip(jax.devices("cpu")[0].device_kind) is None


def test_the_machine_is_described_with_the_commit_if_there_is_git(monkeypatch, tmp_path):
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    found = describe_machine()
    assert found["commit"] == (commit or None) and found["devices"] == jax.device_count()
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert describe_machine() == found | {"commit": None}
