"""Encoding, decoding, measuring and sampling on eight devices give what one device gives, whether or
not the rows divide; and no function keeps a model alive.
"""

import functools
import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT, stages
from helpers.workdirs import MODELS, make_workdir
from vqd_jax.inference import pipeline
from vqd_jax.runtime.devices import local_devices
from vqd_jax.stages import jitted, sampling

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
from vqd_jax.runtime.devices import local_devices
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.base import Constraint
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.token_stage import Conditioning

rng, dtype = np.random.default_rng(0), np.float64 if double else np.float32
init = lambda stage: jax.eval_shape(stage.init, jax.random.key(0), jax.tree.map(jnp.asarray, step_stages.batch()))[0]
draw = lambda stage: jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), dtype), init(stage))
codec, stages = step_stages.CODEC, {name: step_stages.STAGES[name] for name in ("diffusion", "autoregressive")}
weights = draw(codec) | {"codes": jnp.asarray(rng.normal(size=(6, 3)), dtype)}
params = {name: draw(stage) for name, stage in stages.items()}
seen = {}
for count in (16, 13):
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    z, ids, other = rng.integers(0, 6, (count, 16)), rng.integers(1, 9, (2, count, 5)), images[::-1]
    conditions, scales = Conditioning(ids, np.repeat([[False], [True]], count, axis=1)), 1 + rng.random((1, count))
    constraint = Constraint(rng.random((count, 16)) < 0.3, z)
    for devices in (local_devices(1), local_devices(8)):
        got = {"encode": jitted.encode(codec, weights, images, devices=devices),
               "decode": jitted.decode(codec, weights, z, devices=devices),
               "lpips": jitted.lpips("vgg", jitted.lpips_params("vgg", devices), images, other, devices=devices)}
        for name, stage in stages.items():
            got[f"{name} bound"] = jitted.bound(stage, params[name], jax.random.key(1), z, ids[0], 3, devices=devices)
        run = lambda **options: sampling.sample(stages["diffusion"], params["diffusion"], conditions, scales, seed=3, devices=devices,
                                                sampler=Ancestral(calls=3), guidance_config=GuidanceConfig(guidance=2.0), **options)
        got["sample"], got["trace"] = run(trace=True)
        if count == 13:
            got["repainted"] = run(constraint=constraint, image=z, t_start=3)
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


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eight_devices_are_one(dtype):
    done = subprocess.run(
        [sys.executable, "-c", SHARE, dtype], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # 6 s; test_pipeline.py compares sampling
def test_four_devices_are_one():
    """Rows that do not divide; sampling is compared in inference/test_pipeline.py."""
    codec, params, codes = stages.CODEC, {}, np.random.default_rng(0).normal(size=(6, 3))
    draw = lambda s: jnp.asarray(np.random.default_rng(1).normal(size=s.shape), jnp.float32)
    for name in ("vqvae", "autoregressive"):
        init = functools.partial(stages.STAGES[name].init, jax.random.key(0))
        params[name] = jax.tree.map(draw, jax.eval_shape(init, stages.batch())[0])
    weights = params["vqvae"] | {"codes": jnp.asarray(codes, jnp.float32)}
    rng = np.random.default_rng(2)
    images, z = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8), rng.integers(0, 6, (5, 16))
    ids, one, four = rng.integers(1, 9, (5, 5)), local_devices(1), local_devices(4)
    for compute in (
        lambda devices: jitted.encode(codec, weights, images, devices=devices),
        lambda devices: jitted.decode(codec, weights, z, devices=devices),
        lambda devices: jitted.bound(
            stages.STAGES["autoregressive"],
            params["autoregressive"],
            jax.random.key(1),
            z,
            ids,
            1,
            devices=devices,
        ),
    ):
        got, want = np.asarray(compute(four)), np.asarray(compute(one))
        assert len(got) == 5 and np.std(got) > 0
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=int(got.dtype == np.uint8))


@pytest.mark.slow  # 8 s
def test_a_deleted_model_is_freed(tmp_path):
    """Its weights leave the device, although it was sampled from, decoded and its digest taken."""
    workdir = make_workdir(tmp_path / "model", MODELS["none"])
    before = {id(x) for x in jax.live_arrays()}
    model = pipeline.load(workdir)
    model([""], calls=1)
    assert len(model.digest) == 64 and model.digest == pipeline.load(workdir).digest
    gone = [weakref.ref(x) for x in jax.tree.leaves((model.weights, model.codec_weights))]
    model_gone = weakref.ref(model)
    del model
    gc.collect()
    assert model_gone() is None and not any(ref() is not None for ref in gone)
    assert sampling.compiled_samplers() > 0  # the programs stay, without the weights
    left = [x.shape for x in jax.live_arrays() if id(x) not in before and x.ndim > 1]
    assert not left
