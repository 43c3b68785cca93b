"""The step of a dry run is the one that training runs: the same shapes and shardings, and the bytes
and collectives that one expects.
"""

import functools

import jax
import numpy as np
import pytest

from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.devices import building_for
from vqd_jax.runtime.parallel import bytes_per_device, parallelism
from vqd_jax.train import dry_run
from vqd_jax.train.cost.program import Program
from vqd_jax.train.state import State

LAYOUTS = {
    "pmap": {},
    "data": dict(strategy="mesh"),
    "fsdp": dict(strategy="mesh", fsdp=4),
    "both": dict(strategy="mesh", fsdp=2, tensor=2),
}
STAGES = ("vqvae", "diffusion", "autoregressive")


def small(dtype="float32", transform="resize"):
    c = defaults()
    c.data.image_size, c.data.transform = 16, transform
    c.vqvae.channels, c.vqvae.latent_width = 8, 8
    c.codebook.codes, c.codebook.width = 64, 8
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads, c.process.T = 2, 32, 2, 10
    c.learned_text.width, c.learned_text.heads, c.learned_text.layers, c.learned_text.vocabulary = (
        32,
        2,
        1,
        300,
    )
    c.vqvae_train.batch_size = c.diffusion_train.batch_size = 8
    c.vqvae_loss.lpips = 0.0
    c.vqvae.dtype = c.denoiser.dtype = dtype
    return c


def real(step):
    """State, frozen and batch with numbers in them, made as training makes them."""
    rng = np.random.default_rng(0)
    fill = lambda x: (
        rng.integers(1, 9, x.shape).astype(x.dtype)
        if np.issubdtype(x.dtype, np.integer)
        else np.full(x.shape, 0.1, x.dtype)
    )
    batch, frozen = jax.tree.map(fill, step.batch), jax.tree.map(fill, step.frozen)
    params, extra = jax.jit(step.stage.init)(jax.random.key(0), batch)
    optimizer = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), step.state.opt_state)
    return (
        State(
            step=np.zeros((), np.int32),
            params=params,
            ema=params if step.train.ema else None,
            opt_state=optimizer,
            extra=extra,
        ),
        frozen,
        batch,
    )


VARIANTS = [
    pytest.param("vqvae", "resize", marks=pytest.mark.slow),
    pytest.param("diffusion", "resize", marks=pytest.mark.slow),
    ("diffusion", "crop"),
    ("autoregressive", "resize"),
]


@functools.cache
def made(name, transform):
    """A dry run, with state, frozen and batch in numbers."""
    step = dry_run.dry_run(small(transform=transform), name)
    return step, *real(step)


def placed(name, transform, parallel):
    """The arguments of a step on the devices, and their shapes and shardings by the dry run."""
    step, state, frozen, batch = made(name, transform)
    return (
        (parallel.device_put(state), parallel.device_put(frozen), parallel.shard(batch)),
        (
            parallel.device_put_shapes(step.state),
            parallel.device_put_shapes(step.frozen),
            parallel.shard_shapes(step.batch),
        ),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name,transform", VARIANTS)
def test_what_is_placed_in_training_is_what_the_dry_run_has(name, transform, layout):
    parallel = parallelism(**LAYOUTS[layout])
    _, _, frozen, batch = made(name, transform)
    assert ("image" in batch) == (name == "vqvae" or transform == "crop")
    assert bool(frozen) == (transform == "crop")
    arrays, shapes = placed(name, transform, parallel)
    assert jax.tree.structure(arrays) == jax.tree.structure(shapes)
    for x, want in zip(jax.tree.leaves(arrays), jax.tree.leaves(shapes)):
        assert (x.shape, x.dtype) == (want.shape, want.dtype)
        if isinstance(x, jax.Array):  # pmap takes its batch from NumPy
            assert x.sharding.is_equivalent_to(want.sharding, x.ndim)
    held = sum(
        shard.data.nbytes
        for x in jax.tree.leaves(arrays[:2])
        for shard in x.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert held == bytes_per_device(shapes[:2])
    ways = LAYOUTS[layout].get("tensor", 1)  # devices that share rows
    assert bytes_per_device(shapes[2]) * 4 == sum(x.nbytes for x in batch.values()) * ways


@pytest.mark.parametrize(
    "transform,layout",
    [(transform, layout) for transform in ("crop", "resize") for layout in LAYOUTS],
)
@pytest.mark.slow  # each compiles a program for 20 s; what is placed is compared above
def test_the_program_of_a_dry_run_takes_these_arrays(transform, layout):
    parallel = parallelism(**LAYOUTS[layout])
    arrays, _ = placed("diffusion", transform, parallel)
    program = made("diffusion", transform)[0].lower(parallel).compile()
    assert int(parallel.unreplicate(program(*arrays, jax.random.key(0))[0].step)) == 1


@pytest.fixture(scope="module", params=STAGES)
def compiled(request):
    step = dry_run.dry_run(small(), request.param)
    read = lambda parallel: Program.read(step.lower(parallel).compile())
    programs = {name: read(parallelism(**layout)) for name, layout in LAYOUTS.items()}
    return request.param, step, programs


@pytest.mark.slow
def test_the_compiler_counts_the_same_bytes(compiled):
    name, step, programs = compiled
    held = {}
    for layout, program in programs.items():
        parallel = parallelism(**LAYOUTS[layout])
        trees = [parallel.device_put_shapes(x) for x in (step.state, step.frozen)]
        arguments = bytes_per_device([*trees, parallel.shard_shapes(step.batch)])
        assert 0 <= program.memory.arguments - arguments <= 16  # the key
        state = trees[0]
        held[layout] = bytes_per_device([state.params, state.opt_state, state.ema])
        assert program.memory.in_place >= held[layout]  # what is donated
    assert held["pmap"] == held["data"]
    assert max(held["fsdp"], held["both"]) < 0.7 * held["pmap"]


@pytest.mark.slow
def test_replicas_reduce_four_bytes_for_each_parameter(compiled):
    name, step, programs = compiled
    count = sum(x.size for x in jax.tree.leaves(step.state.params))
    # what a stage learns without gradients, and which codes are in use
    history = {"vqvae": 64 + 64 * 8 + 64, "diffusion": 2 * 10, "autoregressive": 0}[name]
    reduced = programs["pmap"].collectives["all-reduce"][1]
    if name == "vqvae":  # two biases that act on the same sum have one gradient
        assert abs(reduced / (4 * (count + history)) - 1) < 0.001
    else:
        assert 0 <= reduced - 4 * (count + history) <= 4 * 8  # metrics
    # the rows that dead codes are drawn from are gathered
    others = {*programs["pmap"].collectives} - {"all-reduce"}
    assert others == ({"all-gather"} if name == "vqvae" else set())


@pytest.mark.slow
def test_fsdp_gathers_what_it_has_sharded(compiled):
    """Once or twice, forward and backward, and little else."""
    name, step, programs = compiled
    shapes = jax.tree.leaves(parallelism(**LAYOUTS["fsdp"]).device_put_shapes(step.state.params))
    sharded = sum(x.size * 4 for x in shapes if bytes_per_device(x) < x.size * 4)
    gathered = 4 * programs["fsdp"].collectives["all-gather"][1]  # of four devices
    assert sharded > 0
    if name != "vqvae":
        assert sharded <= gathered <= 3 * sharded


def test_the_dtype_of_the_platform_where_the_config_leaves_it_open():
    c = small("auto")
    for platform, dtype in (("cpu", jax.numpy.float32), ("tpu", jax.numpy.bfloat16)):
        with building_for(platform):
            assert dry_run.dry_run(c, "diffusion").stage.denoiser.dtype == dtype
    assert c.denoiser.dtype == "auto"
    assert dry_run.dry_run(small("float32"), "diffusion").stage.denoiser.dtype == jax.numpy.float32


def test_what_cannot_be_is_a_sentence():
    step = dry_run.dry_run(small(), "diffusion")
    with pytest.raises(UserError, match="batch size 8 must be a multiple of the 3 devices"):
        step.lower(parallelism(devices=3))
    with pytest.raises(
        UserError, match="stages must be one of vqvae, diffusion, autoregressive, got 'gan'"
    ):
        dry_run.dry_run(small(), "gan")


@pytest.mark.parametrize("kind", ["text", "class", "none"])
def test_a_rehearsal_draws_with_the_settings_of_the_config(kind):
    """Guidance has no effect on a model without conditions: it is 1, whatever the default."""
    config = defaults()
    config.condition.kind, config.condition.classes = kind, 3
    assert config.sampling.guidance == 2.0
    stage = dry_run.dry_run(config, "diffusion").stage
    assert stage.fixed_sampling == ({"guidance": 1.0} if kind == "none" else {})
    dry_run.draw(stage, config)


@pytest.mark.parametrize(
    "key,value,sentence",
    [
        ("sampling.calls", 1000, "calls must be in 1..100, got 1000"),
        ("counts.counts", "planned", "there is no plan for the order 'random'"),
        ("counts.order", "zigzag", "zigzag"),
    ],
)
def test_a_rehearsal_tells_what_could_not_be_drawn_after_training(key, value, sentence):
    config, (section, name) = defaults(), key.split(".")
    config.sampling.sampler = "counts" if section == "counts" else "ancestral"
    config[section][name] = value
    with pytest.raises(UserError, match=sentence):
        dry_run.draw(dry_run.dry_run(config, "diffusion").stage, config)
