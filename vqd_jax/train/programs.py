"""The compiled programs around a trained model: encode, decode, sample, bound. Each is compiled once per shape."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vqd_jax.convert.lpips import load_lpips
from vqd_jax.models.lpips import LPIPS
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.train.diffusion import DiffusionStage
from vqd_jax.train.vqvae import VQVAEStage, to_float

encode = jax.jit(VQVAEStage.encode, static_argnums=0)
decode = jax.jit(VQVAEStage.decode, static_argnums=0)
bound = jax.jit(DiffusionStage.bound, static_argnums=(0, 5))
lpips = jax.jit(lambda params, x, y: LPIPS().apply({"params": params}, to_float(x), to_float(y)))


def sample(stage: DiffusionStage, weights: Any, ids: Int[np.ndarray, "b m"], *, seed: int, first: int = 0, calls: int,
           guidance: float, temperature: float, top_p: float) -> Int[np.ndarray, "b n"]:
    """Tokens for each row of text ids; row i uses the noise of image `first` + i of the seed, whatever the batch."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(first + jnp.arange(len(ids)))
    return np.asarray(_sample(stage, Ancestral(calls=calls), guidance != 1, top_p < 1, weights, keys, ids,
                              float(guidance), float(temperature), float(top_p)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sample(stage, sampler, guided, truncated, weights, keys, ids, scale, temperature, top_p):
    return stage.sample(weights, keys, ids, sampler, scale, temperature, top_p, guided=guided, truncated=truncated)


@functools.cache
def lpips_params() -> Any:
    """The network of `lpips`, on the device."""
    return jax.device_put(load_lpips())
