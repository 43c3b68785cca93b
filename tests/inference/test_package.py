"""The public interface: `vqd_jax.load`, `TextToImage` and `__version__`, light to import."""

import subprocess
import sys

import vqd_jax
from helpers import ROOT
from vqd_jax.inference import pipeline


def test_importing_the_package_imports_no_jax():
    script = (
        "import sys, vqd_jax; vqd_jax.__version__;"
        "print(sorted({'jax', 'flax', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_public_names():
    assert vqd_jax.load is pipeline.load and vqd_jax.TextToImage is pipeline.TextToImage
    assert vqd_jax.__version__[0].isdigit() or vqd_jax.__version__ == "unknown"
    assert {"TextToImage", "__version__", "load"} == {*vqd_jax.__all__}
