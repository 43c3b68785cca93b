"""The programs of the published sizes lower from shapes alone, and do the operations that a count
by hand expects.
"""

import importlib.util

import pytest

from helpers import ROOT
from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("full_size", ROOT / "benchmarks" / "full_size.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # 30 s; test_lowering has every kind of program, small
def test_sampling_and_training_of_base_lower_with_the_operations_expected(benchmark):
    c = defaults()
    c.data.transform = "reference"
    paper.codec(c, 8, 2887)
    paper.text(c)
    paper.base(c)
    assert abs(benchmark.forward(c) / 0.668e12 - 1) < 0.005  # as counted elsewhere
    operations = {
        name: (lower().cost_analysis()["flops"], passes)
        for name, lower, passes in benchmark.programs(c, benchmark.shapes(c))
        if "pictures" not in name
    }
    assert [passes for _, passes in operations.values()] == [
        2,
        1,
        0,
        4,
    ]  # three, and one for layers that are computed again
    for name, (flops, passes) in operations.items():
        assert (
            1 <= flops / (passes * benchmark.forward(c)) < 1.12
            if passes
            else 0.28e12 < flops < 0.34e12
        ), (name, flops)
