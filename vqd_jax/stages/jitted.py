"""Jitted functions of trained models: encode, decode, LPIPS, bound, cross-entropy and attention.
Each compiles once per shape; sampling is in `stages.sampling`.

Where a function takes `devices`, they share the rows of the batch; by default all local ones do.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqd_jax.core.shapes import Images, Params, PRNGKey, TextIds, Tokens
from vqd_jax.models.lpips import LPIPS
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.runtime.devices import Devices, local_devices, map_rows, replicate
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages.diffusion import DiffusionStage
from vqd_jax.stages.sampling import guidance_arguments, row_keys
from vqd_jax.stages.token_stage import Conditioning, TokenStage
from vqd_jax.stages.vqvae import VQVAEStage, to_float


def _sharded(function: Callable) -> Callable:
    """Jits `function(static, replicated, *rows)`; `devices` share the rows."""
    jitted = jax.jit(
        lambda static, devices, replicated, *rows: map_rows(
            functools.partial(function, static), devices, replicated, *rows
        ),
        static_argnums=(0, 1),
    )
    return lambda static, replicated, *rows, devices=None: jitted(
        static, devices or local_devices(len(rows[0])), replicated, *rows
    )


encode = _sharded(VQVAEStage.encode)  # (stage, weights, images) -> tokens
decode = _sharded(VQVAEStage.decode)  # (stage, weights, tokens) -> images
lpips = _sharded(  # (network, params, images, images) -> the distance of each pair
    lambda net, params, x, y: _lpips(net, params, to_float(x), to_float(y))
)
_bound = _sharded(lambda static, weights, *rows: static[0].bound(weights, *rows, static[1]))


def bound(
    stage: TokenStage,
    weights: Params,
    key: PRNGKey,
    z_0: Tokens | Int[np.ndarray, "b n"],
    ids: TextIds | Int[np.ndarray, "b m"],
    draws: int,
    *,
    devices: Devices | None = None,
) -> Float[Array, " b"]:
    """`stage.bound` of each row, with a key for each."""
    return _bound((stage, draws), weights, row_keys(key, 0, len(z_0)), z_0, ids, devices=devices)


@functools.partial(jax.jit, static_argnums=0)
def cross_entropy(
    stage: DiffusionStage,
    weights: Params,
    z_0: Int[Array, "b n"],
    ids: TextIds,
    known: Bool[Array, "b n"],
    t: Int[Array, ""],
) -> Float[Array, "b n"]:
    """-log p(x_0) of every token in nats at time t, given the tokens that are `known`; the others
    are [MASK].
    """
    rows = z_0.shape[0]
    z_t = jnp.where(known, z_0, stage.process.k)
    logits = stage.predict(weights, z_t, jnp.full(rows, t), ids, jnp.zeros(rows, bool))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), z_0[..., None], axis=-1)[..., 0]


def attention(
    stage: DiffusionStage,
    weights: Params,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    guidance_config: GuidanceConfig,
    z: Int[np.ndarray, "b n"],
    time: int,
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "p b l m"] | None]:
    """The network's confidence and attention for the states z at a time.

    Confidence is the probability of each token's likeliest code after guidance, temperature and
    truncation. Attention is `stage.attention` of each position to each prompt, None for models
    without text.
    """
    static_guidance, dynamic = guidance_arguments(guidance_config, scales, conditions)
    guided = bool(static_guidance.guides(1 - np.asarray(stage.process.unmasked)[[time]])[0])
    t = np.full(len(z), time, np.int32)
    out = _attention(stage, static_guidance, guided, weights, conditions, dynamic, z, t)
    return jax.tree.map(np.asarray, out)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attention(stage, static_guidance, guided, weights, conditions, dynamic, z, t):
    logits = stage.denoise(weights, conditions, dynamic, static_guidance, guided=guided)(z, t)
    confidence = jnp.exp(jax.nn.log_softmax(logits[..., : stage.process.k]).max(-1))
    if stage.denoiser.condition != "text":
        return confidence, None
    maps = [stage.attention(weights, z, t, ids) for ids in conditions.ids[:-1]]
    return confidence, jnp.stack(maps)


def lpips_params(net: str, devices: Devices) -> Any:
    """The weights of `lpips`, replicated on the devices; keep them as long as they are needed."""
    return replicate(load_lpips(net), devices)


def _lpips(net: str, params: Params, x: Images, y: Images) -> Float[Array, " b"]:
    # full precision: accelerators would keep fewer digits than published numbers have
    with jax.default_matmul_precision("highest"):
        return LPIPS(net=net).apply({"params": params}, x, y)
