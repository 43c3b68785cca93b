"""The compiled programs around a trained model: encode, decode, sample, bound. Each is compiled once per shape."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vqd_jax.convert.lpips import load_lpips
from vqd_jax.models.lpips import LPIPS
from vqd_jax.samplers import autoregressive, run
from vqd_jax.samplers.autoregressive import Raster
from vqd_jax.samplers.prediction import Prediction, Switches
from vqd_jax.samplers.run import Known, Sampler
from vqd_jax.shapes import PRNGKeys
from vqd_jax.sharding import AXIS
from vqd_jax.train.autoregressive import AutoregressiveStage, TokenStage
from vqd_jax.train.diffusion import Conditions, DiffusionStage
from vqd_jax.train.vqvae import VQVAEStage, to_float

encode = jax.jit(VQVAEStage.encode, static_argnums=0)
decode = jax.jit(VQVAEStage.decode, static_argnums=0)
bound = jax.jit(lambda stage, *rest: stage.bound(*rest), static_argnums=(0, 5))
lpips = jax.jit(lambda params, x, y: LPIPS().apply({"params": params}, to_float(x), to_float(y)))


def sample(stage: TokenStage, weights: Any, conditions: Conditions, scales: Float[np.ndarray, "p b"], *, seed: int, first: int = 0,
           sampler: Sampler | Raster, prediction: Prediction, image: Int[np.ndarray, "b n"] | None = None, known: Known | None = None,
           begin: int | None = None, trace: bool = False, devices: int = 1) -> Any:
    """Tokens for each row of conditions; row i uses the noise of image `first` + i of the seed, whatever the batch.

    `scales` are those of guidance. With `image` its tokens are noised to the time `begin` and sampling begins there.
    With `trace` returns (tokens, states (calls, b, n)). With `devices` the rows, a multiple of them, are shared out; each
    device does what one alone would do with its rows.
    """
    keys, (switches, knobs) = image_keys(seed, first, scales.shape[1]), _settings(prediction, scales)
    out = _sample(stage, sampler, switches, begin, trace, devices, weights, keys, conditions, knobs, image, known)
    return jax.tree.map(np.asarray, out)


def watch(stage: TokenStage, weights: Any, conditions: Conditions, scales: Float[np.ndarray, "p b"], *, seed: int, first: int = 0,
          sampler: Sampler | Raster, prediction: Prediction) -> Iterator[Int[np.ndarray, "b n"]]:
    """The states of `sample` after each call, each as soon as it is there; a program for each kind of call."""
    keys, (switches, knobs) = image_keys(seed, first, scales.shape[1]), _settings(prediction, scales)
    if isinstance(stage, AutoregressiveStage):
        state = None
        for place in range(math.prod(stage.network.grid)):
            state = _token(stage, switches, weights, keys, conditions, knobs, state, place)
            yield np.asarray(state[1])
        return
    n = math.prod(stage.denoiser.grid)
    guided = switches.guides(1 - np.asarray(stage.process.unmasked)[run.times(sampler, stage.process, n)])

    def one(update, place, z, time, numbers):
        return _one(stage, update, switches, bool(guided[place]), weights, keys, conditions, knobs, z, place, time, numbers)

    yield from map(np.asarray, run.watch(sampler, stage.process, n, one, sampler.start(keys, stage.process, n)))


def _settings(prediction: Prediction, scales: Float[np.ndarray, "p b"]) -> tuple[Switches, dict[str, Any]]:
    """What is compiled, and the numbers that are not."""
    switches = prediction.switches(guided=bool((scales != 1).any() or len(scales) > 1))
    return switches, {"scales": np.asarray(scales, np.float32), "temperature": float(prediction.temperature),
                      "top_p": float(prediction.top_p)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token(stage, switches, weights, keys, conditions, knobs, state, place):
    predict = stage.predictor(weights, conditions, knobs, switches)
    if state is None:
        return autoregressive.begin(keys, predict, stage.empty(keys), stage.network.codes)
    return autoregressive.following(keys, predict, state, place)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _one(stage, update, switches, guided, weights, keys, conditions, knobs, z, place, time, numbers):
    denoise = stage.denoise(weights, conditions, knobs, switches, guided=guided)
    return run.call(update, keys, stage.process, denoise, z, place, time, numbers)


@functools.partial(jax.jit, static_argnums=0)
def cross_entropy(stage: DiffusionStage, weights: Any, z_0: Int[Array, "b n"], ids: Int[Array, "b m"], known: Bool[Array, "b n"],
                  t: Int[Array, ""]) -> Float[Array, "b n"]:
    """-log p(x_0) of every token in nats, at time t, when the `known` tokens are seen and the others are [MASK]."""
    rows = z_0.shape[0]
    logits = stage.predict(weights, jnp.where(known, z_0, stage.process.k), jnp.full(rows, t), ids, jnp.zeros(rows, bool))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), z_0[..., None], axis=-1)[..., 0]


def image_keys(seed: int, first: int, count: int) -> PRNGKeys:
    """The keys of the images `first`, `first` + 1, ... of a seed."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(first + jnp.arange(count))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _sample(stage, sampler, switches, begin, trace, devices, weights, keys, conditions, knobs, image, known):
    def rows(weights, keys, conditions, knobs, image, known):
        z = None if image is None else sampler.noised(keys, stage.process, image, begin)
        late = {} if begin is None else {"z": z, "begin": begin}
        return stage.sample(weights, keys, conditions, knobs, sampler, switches, known=known, trace=trace, **late)

    if devices == 1:
        return rows(weights, keys, conditions, knobs, image, known)
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
    all_, first, second = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    split = {name: second if name == "scales" else all_ for name in knobs}
    return jax.shard_map(rows, mesh=mesh, in_specs=(all_, first, second, split, first, first),
                         out_specs=(first, second) if trace else first, check_vma=False)(
        weights, keys, conditions, knobs, image, known)


@functools.cache
def lpips_params() -> Any:
    """The network of `lpips`, on the device."""
    return jax.device_put(load_lpips())
