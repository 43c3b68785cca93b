"""Encoding, decoding, measuring and drawing on eight devices give what one device gives, whether or
not the rows divide.
"""

import subprocess
import sys

import pytest

from helpers import ROOT

SHARE = """
import sys
import jax
import jax.numpy as jnp
double = sys.argv[1] == "float64"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
if double:
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64  # whatever the models keep in float32 is in float64 here
import numpy as np
sys.path.insert(0, "tests")
from helpers import stages as step_stages
from vqd_jax.eval.features import Extractor
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.guidance import GuidanceConfig as Prediction
from vqd_jax.samplers.base import Constraint as Known
from vqd_jax.runtime.devices import local_devices as here
from vqd_jax.train import programs
from vqd_jax.stages.token_stage import Conditioning as Conditions

rng, dtype = np.random.default_rng(0), np.float64 if double else np.float32
draw = lambda stage: jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), dtype),
                                  jax.eval_shape(stage.init, jax.random.key(0), jax.tree.map(jnp.asarray, step_stages.batch()))[0])
codec, stages = step_stages.CODEC, {name: step_stages.STAGES[name] for name in ("diffusion", "autoregressive")}
weights = draw(codec) | {"codes": jnp.asarray(rng.normal(size=(6, 3)), dtype)}
params = {name: draw(stage) for name, stage in stages.items()}
seen = {}
for count in (16, 13):
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    z, ids, other = rng.integers(0, 6, (count, 16)), rng.integers(1, 9, (2, count, 5)), images[::-1]
    conditions, scales = Conditions(ids, np.repeat([[False], [True]], count, axis=1)), 1 + rng.random((1, count))
    known = Known(rng.random((count, 16)) < 0.3, z)
    for devices in (here(1), here(8)):
        got = {"encode": programs.encode(codec, weights, images, devices=devices),
               "decode": programs.decode(codec, weights, z, devices=devices),
               "lpips": programs.lpips("vgg", programs.lpips_params("vgg", devices), images, other, devices=devices)}
        for name, stage in stages.items():
            got[f"{name} bound"] = programs.bound(stage, params[name], jax.random.key(1), z, ids[0], 3, devices=devices)
        run = lambda **options: programs.sample(stages["diffusion"], params["diffusion"], conditions, scales, seed=3, devices=devices,
                                                sampler=Ancestral(calls=3), prediction=Prediction(guidance=2.0), **options)
        got["sample"], got["trace"] = run(trace=True)
        if count == 13:
            got["repainted"] = run(known=known, image=z, begin=3)
        for name, value in jax.tree.map(np.asarray, got).items():
            if len(devices) == 1:
                seen[name] = value
            elif value.dtype.kind == "f":
                assert value.dtype == dtype and value.shape == (count,)
                np.testing.assert_allclose(value, seen[name], rtol=1e-10 if double else 1e-4, err_msg=name)
            else:  # a draw may turn on the last bit of a float32
                different = np.mean(value != seen[name])
                assert different == 0 if double else different < 0.02, (name, different)
        assert np.std(seen["lpips"]) > 0 and np.std(seen["diffusion bound"]) > 0 and len(np.unique(seen["sample"])) > 3
extractor = Extractor(name="sums", params=dtype(2), embed=lambda p, x: p * jnp.cumsum(x.astype(dtype).mean((1, 2)), 1), batch=16)
np.testing.assert_allclose(extractor(images), 2 * np.cumsum(images.mean((1, 2)), 1), rtol=1e-14 if double else 1e-6)
local = Extractor(name="places", params=(), embed=lambda _, x: jnp.full((x.shape[0], 1), x.shape[0]), batch=16)
assert local(images).tolist() == [[2]] * 13  # each of the eight has two rows
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eight_devices_are_one(dtype):
    done = subprocess.run(
        [sys.executable, "-c", SHARE, dtype], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
