"""What the compilers of a TPU v5e and an H100 make of one layer of the model of configs/coco.py: the
kernels of attention, no array of the size of its weights, and bytes as recorded.

Each part runs where the compiler is installed (jax[tpu] or jax[cuda12]); neither needs the chip.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from helpers import ROOT

RECORDED = json.loads((ROOT / "tests" / "slow" / "aot.json").read_text())
COMPILERS = {"v5e": "libtpu", "h100": "jax_cuda12_plugin"}


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("name", RECORDED)
def test_a_layer_of_base(name, tmp_path):
    recorded = RECORDED[name]
    chip = recorded["arguments"][0].partition("=")[2]
    compiler = COMPILERS[chip.partition(":")[0]]
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    settings = ["--config.stages=('diffusion',)", "--config.denoiser.layers=1"]
    command = [sys.executable, "-m", "vqd_jax", "plan_memory", f"--json={tmp_path / 'plan'}"]
    command += [f"--config={ROOT / 'configs' / 'coco.py'}", *settings, *recorded["arguments"]]
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan").read_text())[0]
    # no weights of attention, (rows, heads, 1024, 1024) or (rows x heads, 1024, 1024)
    assert not [x for x in found["largest"] if re.search(r"\[(\d+,16|128|256|512),1024,1024\]", x)]
    assert found["kernels"] == recorded["kernels"]
    for part in ("arguments", "temporaries"):
        assert found["memory"][part] == pytest.approx(recorded["bytes"][part], rel=0.05)
    if "--sample" not in recorded["arguments"]:  # the whole state is donated
        state = sum(found["arguments"][x] for x in ("parameters", "optimizer", "average"))
        assert found["memory"]["in_place"] >= state
    if recorded["cycles"]:
        assert found["cycles"] <= 1.05 * recorded["cycles"]
