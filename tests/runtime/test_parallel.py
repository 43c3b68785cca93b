"""Splitting a batch over devices changes no number."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.rows import AXIS, Rows, mean


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_the_key_of_an_example_does_not_depend_on_the_devices():
    alone = data(Rows.of_device(8).keys(jax.random.key(3)))
    assert len(np.unique(alone, axis=0)) == 8
    for devices in (2, 4):
        split = jax.pmap(
            lambda _: jax.random.key_data(
                Rows.of_device(8 // devices, AXIS).keys(jax.random.key(3))
            ),
            axis_name=AXIS,
            devices=jax.local_devices()[:devices],
        )(jnp.zeros(devices))
        np.testing.assert_array_equal(np.asarray(split).reshape(8, -1), alone)
    np.testing.assert_array_equal(data(Rows.of_device(3).keys(jax.random.key(3))), alone[:3])
    assert (data(Rows.of_device(8).keys(jax.random.key(4))) != alone).any(1).all()


def test_mean_is_over_devices_and_nothing_on_one():
    tree = {"a": jnp.arange(4.0), "b": jnp.arange(8.0).reshape(4, 2)}
    got = jax.pmap(lambda x: mean(x, AXIS), axis_name=AXIS)(tree)
    np.testing.assert_allclose(got["a"], [1.5] * 4)
    np.testing.assert_allclose(got["b"], [[3, 4]] * 4)
    assert mean(tree, None) is tree


@pytest.mark.parametrize("devices", [0, 1, 2, 4])
def test_a_compiled_step_sees_slices_of_the_batch_and_one_state(devices):
    parallel = parallelism(devices=devices)
    assert parallel.devices == (devices or 4)

    def step(state, frozen, batch, key, axis):
        noise = jax.vmap(jax.random.uniform)(Rows.of_device(len(batch["x"]), axis).keys(key))
        value = mean((frozen["w"] * batch["x"] + noise).mean(), axis)
        return state + value, {"value": value}

    run, x = parallel.compile(step), np.arange(8, dtype=np.float32)
    state, frozen = parallel.device_put(jnp.float32(1)), parallel.device_put({"w": jnp.float32(2)})
    batch = parallel.shard({"x": x})
    assert batch["x"].shape == (parallel.devices, 8 // parallel.devices)
    state, metrics = run(state, frozen, batch, jax.random.key(0))
    noise = jax.vmap(jax.random.uniform)(Rows.of_device(8).keys(jax.random.key(0)))
    np.testing.assert_allclose(
        metrics["value"], np.full(parallel.devices, (2 * x + noise).mean()), rtol=1e-6
    )
    assert parallel.unreplicate(state).shape == ()
    np.testing.assert_allclose(parallel.unreplicate(state), 1 + (2 * x + noise).mean(), rtol=1e-6)
    state, _ = run(state, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(
        parallel.unreplicate(state), 1 + 2 * (2 * x + noise).mean(), rtol=1e-6
    )


def test_every_kind_of_leaf_is_replicated():
    parallel = parallelism(devices=2)
    tree = {"a": np.arange(3), "step": np.zeros((), np.int32), "none": None}
    replicas = parallel.device_put(tree)
    assert (
        replicas["none"] is None
        and replicas["a"].shape == (2, 3)
        and replicas["step"].shape == (2,)
    )
    for name in ("a", "step"):
        assert {s.device for s in replicas[name].addressable_shards} == set(jax.local_devices()[:2])
        np.testing.assert_array_equal(parallel.unreplicate(replicas)[name], tree[name])


def test_bad_input_is_one_sentence():
    with pytest.raises(
        UserError, match="batch size 6 must be a multiple of the 4 devices that share it"
    ):
        parallelism().check_batch(6)
    parallelism().check_batch(8)
    parallelism(devices=2).check_batch(6)
    with pytest.raises(
        UserError, match=r"parallel.devices must be in 0\.\.4, the devices of this process, got 5"
    ):
        parallelism(devices=5)
    with pytest.raises(UserError, match="devices must be in"):
        parallelism(devices=-1)
    with pytest.raises(UserError, match="strategy must be pmap or mesh, got 'fsdp'"):
        parallelism(strategy="fsdp")


TWO_PROCESSES = """
import sys
import socket
import subprocess
import sys
from pathlib import Path

import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
port, me = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=me)
import numpy as np
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.rows import Rows, mean

def step(state, frozen, batch, key, axis):
    noise = jax.vmap(jax.random.uniform)(Rows.of_device(len(batch["x"]), axis).keys(key))
    return state + mean((frozen["w"] * batch["x"] + noise).mean(), axis), {}

parallel, x = parallelism(devices=int(sys.argv[3])), np.arange(8, dtype=np.float32)
mine = parallel.shard({"x": x[4 * me:4 * me + 4]})
state, frozen = parallel.device_put(np.float32(1)), parallel.device_put({"w": np.float32(2)})
state, _ = parallel.compile(step)(state, frozen, mine, jax.random.key(0))
print("state", float(parallel.unreplicate(state)))
"""


@pytest.mark.parametrize("devices", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_are_one_batch(devices):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    run = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, port, str(i), str(devices)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    out = [p.communicate(timeout=300) for p in run]
    noise = jax.vmap(jax.random.uniform)(Rows.of_device(8).keys(jax.random.key(0)))
    for p, (printed, errors) in zip(run, out):
        assert p.returncode == 0, errors
        want = 1 + (2 * np.arange(8) + np.asarray(noise)).mean()
        np.testing.assert_allclose(float(printed.split()[-1]), want, rtol=1e-6)
