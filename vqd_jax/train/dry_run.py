"""A training step from shapes alone: what `vqd_jax.main` would compile, without data, without
weights and without room for them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.config import build
from vqd_jax.models.lpips import LPIPS
from vqd_jax.runtime.parallel import Parallelism, bytes_per_device
from vqd_jax.train.cost import flops
from vqd_jax.train.cost.compiled import Collective, Program
from vqd_jax.train.cost.roofline import Bytes
from vqd_jax.train.loop import Train
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step

CLIP = (49408, 77)  # its vocabulary, and the tokens of a caption


@dataclasses.dataclass(frozen=True)
class StubTokenizer:
    """Stands in for a tokenizer that takes data or a download: of the same size, it knows no words."""

    vocabulary: int
    length: int
    pad: int = 0

    def __call__(self, captions: Any) -> Any:
        return np.zeros((len(captions), self.length), np.int32)

    def to_json(self) -> str:
        return "{}"


@dataclasses.dataclass(frozen=True)
class DryRun:
    """A stage, its step (`train.step.make_step`) and the shapes of the whole of what it works on,
    the batch of all devices included.
    """

    stage: Any
    train: Train
    step: Callable
    state: State
    frozen: Any
    batch: dict[str, Any]

    def flops(self) -> int:
        """Operations of the model in one step, on all devices together; see `train.flops`."""
        example = jax.tree.map(lambda x: shape(*x.shape[1:], dtype=x.dtype), self.batch)
        return flops.of_step(self.stage, self.frozen, example, self.train.batch_size)

    def lower(self, parallel: Parallelism) -> jax.stages.Lowered:
        """The step for those devices. UserError if they cannot share the batch."""
        parallel.check_batch(self.train.batch_size, self.train.accumulate)
        arguments = (
            parallel.device_put_shapes(self.state),
            parallel.device_put_shapes(self.frozen),
            parallel.shard_shapes(self.batch),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        if jax.process_count() > 1 and isinstance(parallel, Pmap):  # which then wants arrays
            arguments, key = (
                jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments),
                jax.random.key(0),
            )
        return parallel.compile(self.step).lower(*arguments, key)

    def compile(self, parallel: Parallelism) -> "Compiled":
        """What the compiler makes of it. The machine code, which nobody runs, is not optimised:
        that takes half of the time.
        """
        program = self.lower(parallel).compile(
            {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        )
        memory, text = program.memory_analysis(), Program.read(program.as_text())
        size = Bytes(
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.alias_size_in_bytes,
            memory.temp_size_in_bytes,
        )
        placed = parallel.device_put_shapes(self.state)
        parts = {
            "parameters": placed.params,
            "optimizer": placed.opt_state,
            "average": placed.ema,
            "other state": (placed.extra, placed.step),
            "frozen": parallel.device_put_shapes(self.frozen),
            "batch": parallel.shard_shapes(self.batch),
        }
        arguments = {name: bytes_per_device(tree) for name, tree in parts.items()}
        return Compiled(size, arguments, text.products(), text.collectives(parallel.axes))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step as compiled: bytes of each device, by the compiler and by their purpose; FLOP of each
    device; collectives.
    """

    size: Bytes
    arguments: dict[str, int]
    products: int
    collectives: list[Collective]


def dry_run(config: Any, name: str) -> DryRun:
    """The stage of that name, as on accelerators where the config leaves it to the machine."""
    config = config.copy_and_resolve_references()
    for section in (config.vqvae, config.denoiser):
        section.dtype = "bfloat16" if section.dtype == "auto" else section.dtype
    for section in (config.vqvae_train, config.diffusion_train):
        section.accumulate = section.accumulate or 1
    config.denoiser.attention = (
        "full" if config.denoiser.attention == "auto" else config.denoiser.attention
    )
    section = build.choose(
        "stages", name, {"vqvae": "vqvae"} | dict.fromkeys(build.TOKEN_STAGES, "diffusion")
    )
    train, codec, side = (
        Train(**config[f"{section}_train"]),
        build.vqvae_stage(config),
        config.data.image_size,
    )
    rows, images = (
        train.batch_size,
        {"image": shape(train.batch_size, side, side, 3, dtype="uint8")},
    )
    if name == "vqvae":
        stage, batch = codec, images
        frozen = (
            {"lpips": of_init(LPIPS().init, *[shape(1, side, side, 3)] * 2)["params"]}
            if config.vqvae_loss.lpips
            else {}
        )
    else:
        words = tokenizer(config)
        stage = build.TOKEN_STAGES[name](config, words)
        batch = {"text": shape(rows, words.length, dtype="int32")}
        if build.encodes_online(config):
            batch, frozen = batch | images, codec_weights(codec, images)
        else:
            batch, frozen = (
                batch
                | {"tokens": shape(rows, (side // codec.model.downsampling) ** 2, dtype="int32")},
                {},
            )
    params, extra = of_init(stage.init, batch)
    optimizer = Optim(**config[f"{section}_optim"]).build(train.steps, rows, stage.unchanged)
    state = State(
        step=shape(dtype="int32"),
        params=params,
        ema=params if train.ema else None,
        extra=extra,
        opt_state=jax.eval_shape(optimizer.init, params),
    )
    return DryRun(
        stage, train, make_step(stage, optimizer, train.ema, train.accumulate), state, frozen, batch
    )


def tokenizer(config: Any) -> Any:
    """One of the size that the config names; what captions teach may have fewer words."""
    if config.condition.kind != "text":
        return build.tokenizer(config, [])
    text = config.learned_text
    return build.choose(
        "text.encoder",
        config.text.encoder,
        {"clip": StubTokenizer(*CLIP), "learned": StubTokenizer(text.vocabulary, text.length)},
    )


def codec_weights(codec: Any, images: dict[str, Any]) -> Any:
    """What a codec's checkpoint holds, as shapes."""
    return of_init(lambda key, batch: codec.weights_of(*codec.init(key, batch)), images)


def of_init(init: Callable, *arguments: Any) -> Any:
    """What `init(key, *arguments)` returns, as shapes."""
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), *arguments)


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))
