"""The training step from shapes alone: what training would compile, without data or weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import DTypeLike, Int
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.inference.prompts import conditioning
from vqd_jax.models.lpips import LPIPS
from vqd_jax.runtime.devices import local_devices
from vqd_jax.runtime.parallel import Parallelism
from vqd_jax.runtime.replicated import Pmap
from vqd_jax.stages.sampling import traced_sample
from vqd_jax.stages.vqvae import VQVAEStage
from vqd_jax.train.cost import flops
from vqd_jax.train.loop import Train
from vqd_jax.train.optim import Optim
from vqd_jax.train.stage import Stage
from vqd_jax.train.state import State, first_average
from vqd_jax.train.step import make_step

CLIP = (49408, 77)  # vocabulary of CLIP's tokenizer, tokens of a caption


@dataclasses.dataclass(frozen=True)
class StubTokenizer:
    """Has the sizes of a tokenizer that is built from captions or downloaded; its ids are 0."""

    vocabulary: int
    length: int
    pad: int = 0

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b m"]:
        return np.zeros((len(captions), self.length), np.int32)

    def to_json(self) -> str:
        return "{}"


@dataclasses.dataclass(frozen=True)
class DryRun:
    """A stage, its optimizer and the shapes of the arguments of its step (`train.step.make_step`),
    with the batch of all devices together.
    """

    stage: Stage
    train: Train
    optimizer: optax.GradientTransformation
    state: State
    frozen: Params
    batch: dict[str, Any]

    def flops(self) -> int:
        """Operations of the model in one step, on all devices together; see `train.cost.flops`."""
        example = jax.tree.map(lambda x: shape(*x.shape[1:], dtype=x.dtype), self.batch)
        return flops.of_step(self.stage, self.frozen, example, self.train.batch_size)

    def lower(self, parallel: Parallelism) -> jax.stages.Lowered:
        """The lowered step for these devices. UserError if they cannot share the batch."""
        micro_batches = self.train.micro_batches(parallel.device_count, self.stage.positions)
        parallel.check_batch(self.train.batch_size, micro_batches)
        step = make_step(self.stage, self.optimizer, self.train.ema, micro_batches)
        arguments = (
            parallel.device_put_shapes(self.state),
            parallel.device_put_shapes(self.frozen),
            parallel.shard_shapes(self.batch),
        )
        key = jax.eval_shape(lambda: root_key(0))
        if jax.process_count() > 1 and isinstance(parallel, Pmap):  # pmap then needs arrays
            arguments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments)
            key = root_key(0)
        return parallel.compile(step).lower(*arguments, key)


def draw(stage: Any, config: ConfigDict) -> None:
    """Traces sampling of one image with the config's settings: what cannot be drawn is an error."""
    settings = dict(config.sampling) | stage.fixed_sampling
    sampler, guidance_config = build.sampling(config, **settings)
    words = tokenizer(config)
    conditions, scales = conditioning(config.condition.kind, words, ["0"], "", guidance_config)
    traced_sample(
        stage,
        eval_init(stage.init, {"text": shape(1, words.length, dtype="int32")})[0],
        jax.eval_shape(lambda: jax.random.split(root_key(0), 1)),
        conditions,
        scales,
        sampler=sampler,
        guidance_config=guidance_config,
        devices=local_devices(1),
    )


def dry_run(config: ConfigDict, name: str) -> DryRun:
    """The dry run of a stage, for the platform of `runtime.devices.platform`."""
    sections = {"vqvae": "vqvae"} | dict.fromkeys(build.TOKEN_STAGES, "diffusion")
    section = build.choose("stages", name, sections)
    train, codec = Train(**config[f"{section}_train"]), build.vqvae_stage(config)
    rows, side = train.batch_size, config.data.image_size
    images = {"image": shape(rows, side, side, 3, dtype="uint8")}
    frozen = {}
    if name == "vqvae":
        stage, batch = codec, images
        if config.vqvae_loss.lpips:
            image = shape(1, side, side, 3)
            frozen = {"lpips": eval_init(LPIPS().init, image, image)["params"]}
    else:
        words = tokenizer(config)
        stage = build.TOKEN_STAGES[name](config, words)
        batch = {"text": shape(rows, words.length, dtype="int32")}
        if build.encodes_online(config):
            batch, frozen = batch | images, codec_weights(codec, images)
        else:
            batch |= {"tokens": shape(rows, stage.tokens, dtype="int32")}
    params, extra = eval_init(stage.init, batch)
    optimizer = Optim(**config[f"{section}_optim"]).build(
        train.examples, train.since, stage.unchanged, stage.dtype
    )
    average = lambda params: first_average(params, stage.unchanged)
    state = State(
        step=shape(dtype="int32"),
        params=params,
        ema=jax.eval_shape(average, params) if train.ema else None,
        extra=extra,
        opt_state=jax.eval_shape(optimizer.init, params),
    )
    return DryRun(stage, train, optimizer, state, frozen, batch)


def tokenizer(config: ConfigDict) -> Tokenizer | StubTokenizer:
    """A tokenizer of the config's size; one that is built from captions may have fewer words."""
    if config.condition.kind != "text":
        return build.tokenizer(config, [])
    text = config.learned_text
    stubs = {"clip": StubTokenizer(*CLIP), "learned": StubTokenizer(text.vocabulary, text.length)}
    return build.choose("text.encoder", config.text.encoder, stubs)


def codec_weights(codec: VQVAEStage, images: dict[str, Any]) -> Params:
    """The shapes of what a codec's checkpoint holds."""
    return eval_init(lambda key, batch: codec.weights_of(*codec.init(key, batch)), images)


def eval_init(init: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of `init(key, *arguments)`."""
    return jax.eval_shape(init, jax.eval_shape(lambda: root_key(0)), *arguments)


def shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))
