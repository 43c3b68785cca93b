"""Importing the package and loading a model sets nothing for the whole process; commands do."""

import json
import os
import subprocess
import sys

from helpers import ROOT

SET_BY_COMMANDS = {
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "MPLBACKEND",
    "TRANSFORMERS_VERBOSITY",
}
STATE = """
import importlib, json, os, pathlib, sys, warnings

def state():
    import absl.logging, jax, logging, matplotlib
    return {
        "filters": [str(f) for f in warnings.filters],
        "unraisablehook": sys.unraisablehook is sys.__unraisablehook__,
        "excepthook": sys.excepthook is sys.__excepthook__,
        "environment": {k: v for k, v in os.environ.items() if k not in LIBRARIES},
        "cache": str(jax.config.jax_compilation_cache_dir),
        "min_compile_time": jax.config.jax_persistent_cache_min_compile_time_secs,
        "platforms": jax.config.jax_platforms,
        "backend": matplotlib.rcParams._get_backend_or_none(),
        "log_filters": {n: len(logging.getLogger(n).filters) for n in ("", "absl", "asyncio")},
        "log_handlers": len(logging.getLogger().handlers),
    }

LIBRARIES = {"TF_CPP_MIN_LOG_LEVEL", "TPU_LIBRARY_PATH", "KMP_DUPLICATE_LIB_OK"}  # set by libraries
# what our modules import, to see what these libraries set by themselves
import jax, flax.linen, optax, orbax.checkpoint, ml_collections.config_flags, matplotlib, PIL.Image
import grain, scipy.stats, transformers
"""
LOAD = """
before = state()
for path in sorted(pathlib.Path("vqd_jax").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
import vqd_jax
vqd_jax.load("pretrained/emoji64")
"""
COMMAND = """
before = state()
from vqd_jax.cli import runner
runner.set_up_process()
"""
END = """
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


def changes(script):
    """Name -> (before, after) of what the script changed, in a fresh interpreter."""
    command = [sys.executable, "-c", STATE + script + END]
    env = {name: value for name, value in os.environ.items() if name not in SET_BY_COMMANDS}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_modules_and_a_loaded_model_leave_the_process_as_it_was():
    assert changes(LOAD) == {}


def test_a_command_sets_what_it_needs():
    """And so the probe above sees these settings."""
    changed = changes(COMMAND)
    assert changed["cache"][1].endswith("vqd_jax/xla") and changed["min_compile_time"][1] == 0
    assert {*changed["environment"][1]} - {*changed["environment"][0]} == {
        "MPLBACKEND",
        "TRANSFORMERS_VERBOSITY",
    }
    assert any("PIL" in text for text in changed["filters"][1])
    assert changed["unraisablehook"] == [True, False]
    assert changed["log_filters"][1]["absl"] == changed["log_filters"][0]["absl"] + 1


def test_deterministic_reaches_the_compiler():
    """XLA ends the process for flags that it does not know."""
    code = """
from vqd_jax.cli import runner
import os, jax
runner.make_gpus_deterministic()
print(jax.numpy.ones(3).sum(), os.environ["XLA_FLAGS"])
"""
    env = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [
        "3.0",
        "--xla_cpu_enable_fast_math=false",
        "--xla_gpu_deterministic_ops=true",
    ], done.stderr
