"""Where the state of training lives, and what of it is stored."""

import collections
import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import stages
from helpers.toy_training import OPTIM, Mean, contents, train
from vqd_jax.core.pace import Pace
from vqd_jax.diffusion import schedules
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.stages.lora import Adapter
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State, StateStore, average, first_average

SIDE = 512  # a kernel of 1 MB


@dataclasses.dataclass(frozen=True)
class Large(Mean):
    """Trains a kernel; a tower of the same size stays as it is if `tower`."""

    tower: bool = False

    @property
    def unchanged(self):
        return (lambda params: {name: name == "tower" for name in params}) if self.tower else None

    def init(self, key, batch):
        names = ("qkv/kernel", "tower/kernel")[: 1 + self.tower]
        kernels = {name: jax.random.normal(key, (SIDE, SIDE)) for name in names}
        return {n.split("/")[0]: kernels[n] for n in names}, {"seen": jnp.zeros(())}

    def loss(self, params, extra, frozen, batch, key, step, rows):
        loss = jnp.square(params["qkv"].mean() - batch["x"]).mean()
        return loss, ({"x": batch["x"]}, {"loss": loss})


@dataclasses.dataclass(frozen=True)
class Kernel(Large):
    """The same with a path of parameters that a mesh shards."""

    def init(self, key, batch):
        params, extra = super().init(key, batch)
        return {"qkv": {"kernel": params["qkv"]}}, extra

    def loss(self, params, *rest):
        return super().loss({"qkv": params["qkv"]["kernel"]}, *rest)


def live(before):
    """Bytes that live on each device, but for the arrays `before`, in units of the kernel."""
    by_device, known = collections.Counter(), set()
    for x in jax.live_arrays():
        if id(x) in before or x.is_deleted():
            continue
        for shard in x.addressable_shards:
            place = shard.device.id, shard.data.unsafe_buffer_pointer()
            by_device[shard.device.id] += shard.data.nbytes * (place not in known)
            known.add(place)
    return [by_device[device.id] / (4 * SIDE * SIDE) for device in jax.devices()]


@pytest.mark.parametrize(
    "options,share",
    [(dict(devices=4), 4), (dict(strategy="mesh", fsdp=4), 1), (dict(strategy="mesh", fsdp=2), 2)],
    ids=["pmap", "fsdp 4", "fsdp 2"],
)
def test_no_second_copy_lives_on_a_device_at_any_point(tmp_path, monkeypatch, options, share):
    """Parameters, two moments and the average are 4 kernels: on each device with pmap, sharded over
    the devices of a mesh. Observed after init or restore, in evaluations and around saves, of a
    fresh run and of one that resumes.
    """
    gc.collect()
    kept = jax.live_arrays()  # keeps their ids
    before, seen = {id(x) for x in kept}, collections.defaultdict(list)
    save = Checkpoints.save

    def watched_save(self, *arguments, **options):
        seen["save"].append(live(before))
        save(self, *arguments, **options)
        seen["after save"].append(live(before))

    def load(i, rng):
        return {"x": np.float32(i % 7 / 7)}

    def evaluate(step, weights):
        assert isinstance(jax.tree.leaves(weights)[0], np.ndarray)
        seen["evaluate"].append(live(before))
        return {"mean": 0.0}

    monkeypatch.setattr(Checkpoints, "save", watched_save)
    settings = dict(batch_size=4, evaluate_every=20, save_every=20, log_every=8)
    parallel = parallelism(**options)
    for examples in (40, 80):  # the second run resumes
        train(
            tmp_path,
            stage=Kernel(),
            parallel=parallel,
            load=load,
            evaluate=evaluate,
            examples=examples,
            **settings,
        )
    assert [len(points) for points in seen.values()] == [4, 4, 4]
    for points in seen.values():
        np.testing.assert_allclose(points, share, atol=0.01)
    del kept


def test_what_is_not_trained_has_no_average_and_is_stored_once(tmp_path):
    """The weights of a checkpoint are complete all the same, and a run that resumes ends with the
    bits of one that did not stop.
    """
    stage = Large(tower=True)
    options = dict(stage=stage, load=lambda i, rng: {"x": np.float32(i % 7 / 7)})
    evaluate = lambda step, weights: {"mean": 0.0}
    train(tmp_path / "whole", evaluate=evaluate, examples=120, **options)
    train(tmp_path / "parts", evaluate=evaluate, examples=80, **options)
    train(tmp_path / "parts", evaluate=evaluate, examples=120, **options)
    jax.tree.map(
        np.testing.assert_array_equal, *(contents(tmp_path / x)[1] for x in ("whole", "parts"))
    )
    weights = [
        Checkpoints(tmp_path / x / "checkpoints", read_only=True).restore("weights")
        for x in ("whole", "parts")
    ]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    state = contents(tmp_path / "whole")[1]
    np.testing.assert_array_equal(weights[0]["tower"], state["params"]["tower"])
    assert not np.array_equal(weights[0]["qkv"], state["params"]["qkv"])  # the average


def test_the_average_of_parameters_of_which_some_are_not_trained():
    params = {"a": jnp.ones(3), "b": jnp.full(2, 5.0)}
    ema = first_average(params, lambda params: {"a": False, "b": True})
    assert ema["b"] is None and len(jax.tree.leaves(ema)) == 1
    moved = {"a": jnp.full(3, 11.0), "b": jnp.full(2, 6.0)}
    ema = average(ema, moved, 0.9, jnp.int32(0))  # at first the decay is 1 / 10
    np.testing.assert_allclose(ema["a"], 0.1 * 1 + 0.9 * 11, rtol=1e-6)
    state = State(step=0, params=moved, ema=ema, opt_state=None, extra=None)
    np.testing.assert_array_equal(state.averaged["b"], moved["b"])
    np.testing.assert_array_equal(state.averaged["a"], ema["a"])
    assert dataclasses.replace(state, ema=None).averaged is moved


def test_the_average_of_a_stage_whose_weights_are_not_its_parameters_is_restored(tmp_path):
    """As of a codec, whose weights have the codes, too: the average is then part of the state."""

    class WithSum(Mean):
        def weights_of(self, params, extra):
            return {"average": params["mean"], "seen": extra["seen"]}

    evaluate = lambda step, weights: {"mean": weights["average"]}
    train(tmp_path / "whole", stage=WithSum(), evaluate=evaluate)
    train(tmp_path / "parts", stage=WithSum(), evaluate=evaluate, examples=80)
    train(tmp_path / "parts", stage=WithSum(), evaluate=evaluate)
    whole, parts = (contents(tmp_path / x) for x in ("whole", "parts"))
    assert "ema" in whole[1]
    jax.tree.map(np.testing.assert_array_equal, whole[1], parts[1])


PLAIN_LOSS = dataclasses.replace(stages.CODEC.weights, adversarial=0.0)
GROUPS = dataclasses.replace(stages.CODEC.codebook, groups=2)
GRADIENT = dataclasses.replace(stages.CODEC.codebook, updates="gradient")
VARIANTS = {
    "codec": dataclasses.replace(stages.CODEC, weights=PLAIN_LOSS),
    "codec with a discriminator": stages.CODEC,
    "codec with gradient codes": dataclasses.replace(
        stages.CODEC, weights=PLAIN_LOSS, codebook=GRADIENT
    ),
    "codec with groups": dataclasses.replace(stages.CODEC, weights=PLAIN_LOSS, codebook=GROUPS),
    "codec with all of them": dataclasses.replace(
        stages.CODEC, codebook=dataclasses.replace(GRADIENT, groups=2)
    ),
    "diffusion": stages.DIFFUSION,
    "diffusion with groups": dataclasses.replace(
        stages.DIFFUSION,
        process=schedules.paper(6, 6),
        denoiser=stages.DIFFUSION.denoiser.clone(groups=2, grid=(2, 4)),
        codec=dataclasses.replace(stages.CODEC, codebook=GROUPS),
    ),
    "diffusion with an adapter": dataclasses.replace(
        stages.DIFFUSION, adapter=Adapter(rank=2, alpha=2.0, kernels="all")
    ),
    "autoregressive": stages.AUTOREGRESSIVE,
}


QUICK = ("codec with all of them", "diffusion with groups", "diffusion with an adapter")


@pytest.mark.parametrize(
    "ema", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "average"]
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)  # 3 s each
        for name in VARIANTS
    ],
)
def test_the_state_of_every_stage_comes_back(tmp_path, name, ema):
    """All of it, bit for bit, whatever its weights leave out."""
    stage, batch = VARIANTS[name], stages.batch()
    optim = Optim(**OPTIM | dict(muon=0.1))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        store = StateStore(
            name=name,
            stage=stage,
            optimizer=optim.build(80, Pace(8), stage.unchanged),
            checkpoints=checkpoints,
            parallel=parallelism(devices=1),
            ema=ema,
        )
        state = store.restore_or_init(jax.random.key(0), batch)
        numbers = iter(range(10_000))  # every leaf differs from what a fresh state has
        state = jax.tree.map(lambda x: x + jnp.asarray(next(numbers) % 97 + 1, x.dtype), state)
        checkpoints.save(7, store.items(state), wait=True)
        again = store.restore_or_init(jax.random.key(1), batch)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
