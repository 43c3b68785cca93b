"""The step of a dry run is the one that training runs: the same shapes and shardings, and the bytes
and collectives that one expects.
"""

import functools

import jax
import numpy as np
import pytest

from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.parallel import bytes_per_device, parallelism
from vqd_jax.train import dry_run
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
    return (
        request.param,
        step,
        {name: step.compile(parallelism(**layout)) for name, layout in LAYOUTS.items()},
    )


@pytest.mark.slow
def test_the_compiler_counts_the_same_bytes(compiled):
    name, _, programs = compiled
    for program in programs.values():
        assert 0 <= program.size.arguments - sum(program.arguments.values()) <= 16  # the key
        assert program.size.in_place >= sum(
            program.arguments[x] for x in ("parameters", "optimizer", "average")
        )  # what is donated
        assert program.size.peak >= program.size.arguments + program.size.temporaries
    state = lambda x: sum(x.arguments[part] for part in ("parameters", "optimizer", "average"))
    assert state(programs["pmap"]) == state(programs["data"])
    assert max(state(programs["fsdp"]), state(programs["both"])) < 0.7 * state(programs["pmap"])


@pytest.mark.slow
def test_copies_reduce_four_bytes_for_each_parameter(compiled):
    name, step, programs = compiled
    count = sum(x.size for x in jax.tree.leaves(step.state.params))
    history = {"vqvae": 64 + 64 * 8 + 64, "diffusion": 2 * 10, "autoregressive": 0}[
        name
    ]  # what a stage learns, and which codes are in use
    reduced = sum(c.size * c.count for c in programs["pmap"].collectives if c.kind == "all-reduce")
    if name == "vqvae":  # two biases that act on the same sum have one gradient
        assert abs(reduced / (4 * (count + history)) - 1) < 0.001
    else:
        assert 0 <= reduced - 4 * (count + history) <= 4 * 8  # metrics
    assert {c.axes for c in programs["pmap"].collectives} == {("batch",)}
    others = {c.kind for c in programs["pmap"].collectives} - {"all-reduce"}
    assert others == (
        {"all-gather"} if name == "vqvae" else set()
    )  # of the rows that dead codes are drawn from


@pytest.mark.slow
def test_fsdp_gathers_what_it_has_cut_and_each_device_does_its_own_rows(compiled):
    name, step, programs = compiled
    parallel = parallelism(**LAYOUTS["fsdp"])
    shapes = jax.tree.leaves(parallel.device_put_shapes(step.state.params))
    cut = sum(x.size * 4 for x in shapes if bytes_per_device(x) < x.size * 4)
    gathered = sum(c.moved for c in programs["fsdp"].collectives if c.kind == "all-gather")
    assert cut > 0
    if name != "vqvae":
        assert (
            3 / 4 * cut <= gathered <= 3 * 3 / 4 * cut
        )  # once or twice, forward and backward, and little else
        assert abs(programs["fsdp"].products / programs["pmap"].products - 1) < 0.1


@pytest.mark.slow  # 20 s of compiling
def test_the_model_does_what_one_device_does():
    for name in ("diffusion", "autoregressive"):
        step = dry_run.dry_run(small(), name)
        assert 1 <= step.compile(parallelism(devices=1)).products / step.flops() < 1.3, name


def test_accelerators_dtype_where_the_config_leaves_it_open():
    c = small("auto")
    assert dry_run.dry_run(c, "diffusion").stage.denoiser.dtype == jax.numpy.bfloat16
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
