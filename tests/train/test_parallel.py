"""Fifty steps of every stage on eight devices, by every strategy, are the fifty steps of one, in
float64 to 1e-6, with dropout.
"""

import subprocess
import sys

import pytest

from helpers import ROOT

STEPS = """
import dataclasses
import sys
import jax
import jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
jnp.float32 = jnp.float64  # whatever the models and losses keep in float32 is in float64 here
import numpy as np
sys.path.insert(0, "tests")
from helpers import stages as step_stages
from vqd_jax.core.pace import Pace
from vqd_jax.stages.lora import Adapter
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step

name, rng = sys.argv[1], np.random.default_rng(0)
deep = step_stages.DIFFUSION.denoiser.clone(layers=2, scan=True, remat="full")
adapted = dataclasses.replace(step_stages.DIFFUSION, denoiser=deep, adapter=Adapter(rank=2, kernels="all"))
scanned = dataclasses.replace(step_stages.AUTOREGRESSIVE, network=step_stages.AUTOREGRESSIVE.network.clone(layers=2, scan=True))
stage = (step_stages.STAGES | {"adapter": adapted, "autoregressive": scanned})[name]
batches = [{"image": rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8), "text": rng.integers(1, 9, (16, 5)),
            "tokens": rng.integers(0, 6, (16, 16))} for _ in range(50)]
optim = Optim(learning_rate=3e-3, warmup=32, decay="cosine", final=0.1, betas=(0.9, 0.96), weight_decay=0.01, clip=0.5)
optimizer = optim.build(800, Pace(16), stage.unchanged)
params, extra = jax.tree.map(np.asarray, jax.jit(stage.init)(jax.random.key(0), batches[0]))
double = lambda tree: jax.tree.map(lambda x: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x, tree)
params, extra = double(params), double(extra)

def train(**layout):
    state = State(step=np.zeros((), np.int32), params=params, ema=params, opt_state=optimizer.init(params), extra=extra)
    parallel = parallelism(**layout)
    run = parallel.compile(make_step(stage, optimizer, 0.9))
    state, frozen, losses = parallel.device_put(state), parallel.device_put({}), []
    for batch in batches:
        state, metrics = run(state, frozen, parallel.shard(batch), jax.random.key(1))
        losses.append(float(parallel.unreplicate(metrics)["loss"]))
    return jax.device_get(parallel.unreplicate(state)), np.array(losses)

alone, losses = train(devices=1)
moved = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(params)))
assert all(x.dtype == np.float64 for x in jax.tree.leaves(alone.params)) and moved > 0.01, moved
for layout in ({}, {"fsdp": 1}, {"fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"tensor": 8}):
    state, theirs = train(strategy="mesh" if layout else "pmap", **layout)
    far = max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone)))
    print(layout, "worst of the state", far, "of the losses", np.abs(theirs / losses - 1).max())
    assert far < 1e-6 and np.abs(theirs / losses - 1).max() < 1e-6
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vqvae", "diffusion", "autoregressive", "adapter"])
def test_fifty_steps_on_eight_devices(stage):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, stage], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
