"""The training step of each stage: its gradient and averages; and 4 devices, or micro-batches, take
the step of one device, with dropout.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.stages import CODEC, STAGES, batch, close
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.rows import Rows
from vqd_jax.stages.importance import LossAwareTimes
from vqd_jax.train.state import State
from vqd_jax.train.step import default_micro_batches, make_step


def gradient_as_state():
    """An optimizer that changes the parameters by -g and remembers g, so that g can be compared
    without rounding.
    """
    return optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p),
        lambda g, state, p: (jax.tree.map(jnp.negative, g), g),
    )


@functools.cache
def make(name):
    """A stage, a state that is not fresh, and the compiled step of one device."""
    stage, rng = STAGES[name], np.random.default_rng(1)
    shapes, extra = jax.eval_shape(
        stage.init, jax.random.key(0), jax.tree.map(jnp.asarray, batch())
    )
    params = jax.tree.map(
        lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes
    )
    if name == "diffusion":
        extra = LossAwareTimes(square=jnp.linspace(0.1, 3, 6), count=jnp.full(6, 20.0))
    elif name == "vqvae":
        extra = jax.tree.map(lambda s: jnp.asarray(1 + rng.random(s.shape), jnp.float32), extra)
    state = State(
        step=np.int32(3),
        params=params,
        ema=jax.tree.map(jnp.zeros_like, params),
        opt_state=gradient_as_state().init(params),
        extra=extra,
    )
    return stage, state, jax.jit(make_step(stage, gradient_as_state(), 0.99))


@pytest.fixture(
    params=[pytest.param("vqvae", marks=pytest.mark.slow), "diffusion", "autoregressive"]
)
def setting(request):
    return make(request.param)


def cases(layouts, quick):
    """Pairs (stage, layout) as parameters; those that are not `quick` are slow, as each
    compiles programs for many seconds.
    """
    return [
        pytest.param(stage, layout, marks=() if (stage, layout) in quick else pytest.mark.slow)
        for stage in STAGES
        for layout in layouts
    ]


LAYOUTS = {
    "pmap": {},
    "data": dict(strategy="mesh"),
    "fsdp": dict(strategy="mesh", fsdp=4),
    "tensor": dict(strategy="mesh", tensor=4),
    "both": dict(strategy="mesh", fsdp=2, tensor=2),
}


FOUR = [("autoregressive", "both")]  # the quick one; pmap is among the micro-batches below


@pytest.mark.parametrize("name,layout", cases(LAYOUTS, FOUR))
def test_four_devices_take_the_step_of_one(name, layout, caplog):
    stage, fresh, step = make(name)
    alone, metrics = step(fresh, {}, batch(), jax.random.key(1))
    parallel = parallelism(**LAYOUTS[layout])
    run = parallel.compile(make_step(stage, gradient_as_state(), 0.99))
    state, frozen = parallel.device_put(fresh), parallel.device_put({})
    shared, shared_metrics = run(state, frozen, parallel.shard(batch()), jax.random.key(1))
    for x in jax.tree.leaves(shared):  # and replicas stay equal
        for shard in x.addressable_shards if layout == "pmap" else ():
            np.testing.assert_array_equal(shard.data, x.addressable_shards[0].data)
    if layout in ("fsdp", "tensor", "both"):  # parameters are sharded, and stay so
        same = jax.tree.map(
            lambda x, want: x.sharding.is_equivalent_to(want, x.ndim),
            shared,
            parallel.shardings(fresh),
        )
        assert all(jax.tree.leaves(same))
        kernels = [
            x
            for path, x in jax.tree_util.tree_leaves_with_path(shared.params)
            if "kernel" in str(path[-1]) and x.size > 64
        ]
        assert np.mean([x.addressable_shards[0].data.size / x.size for x in kernels]) < 0.5
    placed, (shared, shared_metrics) = shared, parallel.unreplicate((shared, shared_metrics))
    close(shared.opt_state, alone.opt_state, 1e-5)
    close(shared.params, alone.params, 1e-5)
    close(shared.ema, alone.ema, 1e-5)
    close(shared.extra, alone.extra, 1e-5)
    assert shared.step == alone.step == 4
    assert shared_metrics.keys() == metrics.keys() and (
        {"codes_in_use", "perplexity"} <= metrics.keys()
    ) == (stage is CODEC)
    for metric in metrics:
        np.testing.assert_allclose(
            shared_metrics[metric], metrics[metric], rtol=2e-5, err_msg=metric
        )
    with jax.log_compiles():
        run(placed, frozen, parallel.shard(batch()), jax.random.key(1))
    assert "Compiling" not in caplog.text  # the second step is the program of the first


MICRO = [("diffusion", "pmap")]  # and with it that four devices take the step of one


@pytest.mark.parametrize("name,layout", cases(["one device", "pmap", "both"], MICRO))
def test_micro_batches_take_the_step_of_the_batch(name, layout):
    stage, fresh, _ = make(name)
    if stage is CODEC:
        stage = dataclasses.replace(
            stage, weights=dataclasses.replace(stage.weights, adversarial_adaptive=False)
        )
    whole, metrics = jax.jit(make_step(stage, gradient_as_state(), 0.99))(
        fresh, {}, batch(), jax.random.key(1)
    )
    parallel = parallelism(**LAYOUTS.get(layout, {"devices": 1}))
    run = parallel.compile(make_step(stage, gradient_as_state(), 0.99, accumulate=2))
    micro = run(
        parallel.device_put(fresh),
        parallel.device_put({}),
        parallel.shard(batch()),
        jax.random.key(1),
    )
    micro, micro_metrics = parallel.unreplicate(micro)
    close(micro.opt_state, whole.opt_state, 1e-5)
    close(micro.extra, whole.extra, 1e-5)
    for metric in metrics:
        np.testing.assert_allclose(
            micro_metrics[metric], metrics[metric], rtol=2e-5, err_msg=metric
        )


@pytest.mark.parametrize(
    "rows,positions,count",
    [
        (128, 64, 8),
        (4, 1024, 4),
        (6, 300, 2),
        (7, 300, 7),
        (3, 5000, 3),
        (5, 100, 1),
        (64, 0, 1),
        (1, 9, 1),
        (0, 9, 1),
    ],
)
def test_micro_batches_for_the_cache_are_the_fewest_with_at_most_1024_positions(
    rows, positions, count
):
    assert default_micro_batches(rows, positions) == count


def test_an_accelerator_takes_the_whole_batch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_micro_batches(128, 1024) == 1


def test_a_balance_of_the_whole_batch_is_refused_with_micro_batches():
    _, fresh, _ = make("vqvae")
    with pytest.raises(
        UserError,
        match="vqvae_loss.adversarial_adaptive needs the gradient of the whole batch",
    ):
        make_step(CODEC, gradient_as_state(), 0.99, accumulate=2)(
            fresh, {}, batch(), jax.random.key(1)
        )


def test_the_step_is_the_losss_gradient_and_the_averages(setting):
    stage, fresh, step = setting
    state, metrics = step(fresh, {}, batch(), jax.random.key(1))
    data = jax.tree.map(jnp.asarray, batch())
    key = jax.random.fold_in(jax.random.key(1), 3)
    value = lambda p: stage.loss(p, fresh.extra, {}, data, key, jnp.int32(3), Rows.of_device(8))
    (loss, (aux, _)), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(fresh.params)
    extra, _ = stage.update_extra(fresh.extra, aux, key, jnp.int32(3), None)
    close(state.opt_state, gradient, 1e-5)
    close(state.extra, extra, 1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    norm = np.sqrt(
        sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient))
    )
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    close(state.params, jax.tree.map(lambda p, g: p - g, fresh.params, gradient), 1e-5)
    close(
        state.ema, jax.tree.map(lambda p: (1 - 4 / 13) * p, state.params), 1e-5
    )  # decay (1 + 3) / (10 + 3) at step 3
    late, _ = step(fresh.replace(step=np.int32(10_000)), {}, batch(), jax.random.key(1))
    close(late.ema, jax.tree.map(lambda p: 0.01 * p, late.params), 1e-5)


def test_the_same_step_twice_is_the_same_and_another_step_is_not():
    """Noise comes from the root key and the step alone."""
    _, fresh, step = make("diffusion")
    (a, _), (b, _) = (step(fresh, {}, batch(), jax.random.key(1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    c, _ = step(fresh.replace(step=np.int32(4)), {}, batch(), jax.random.key(1))
    d, _ = step(fresh, {}, batch(), jax.random.key(2))
    count = [np.asarray(x.extra.count) for x in (a, c, d)]
    assert (count[0] != count[1]).any() and (count[0] != count[2]).any()


def test_no_average_without_a_decay():
    class Square:
        def loss(self, params, *_):
            return jnp.square(params).sum(), ({}, {"loss": jnp.square(params).sum()})

        def update_extra(self, extra, *_):
            return extra, {}

    fresh = State(
        step=np.int32(0), params=jnp.ones(2), ema=None, opt_state=jnp.zeros(2), extra=None
    )
    state, _ = make_step(Square(), gradient_as_state(), 0.0)(
        fresh, {}, {"x": np.zeros(1)}, jax.random.key(0)
    )
    assert state.ema is None
    np.testing.assert_allclose(state.params, [-1, -1])
