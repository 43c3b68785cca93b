"""The compiled programs around a trained model: encode, decode, sample, bound. Each is compiled
once per shape.

Devices share the rows of a batch: all of this process, if nothing else is said.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqd_jax.core.shapes import Images, PRNGKey, PRNGKeys, TextIds, Tokens
from vqd_jax.models.lpips import LPIPS
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.runtime.sharding import Devices, local_devices, map_rows, replicate
from vqd_jax.samplers import autoregressive, base
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Constraint, Sampler
from vqd_jax.samplers.guidance import GuidanceConfig, StaticGuidance
from vqd_jax.stages.autoregressive import AutoregressiveStage, TokenStage
from vqd_jax.stages.diffusion import Conditioning, DiffusionStage
from vqd_jax.stages.vqvae import VQVAEStage, to_float


def _program(function: Callable) -> Callable:
    """`function(fixed, whole, *rows)` compiled, once for each `fixed`, with its rows shared by
    `devices`.
    """
    program = jax.jit(
        lambda fixed, devices, whole, *rows: map_rows(
            functools.partial(function, fixed), devices, whole, *rows
        ),
        static_argnums=(0, 1),
    )
    return lambda fixed, whole, *rows, devices=None: program(
        fixed, devices or local_devices(len(rows[0])), whole, *rows
    )


encode, decode = _program(VQVAEStage.encode), _program(VQVAEStage.decode)
lpips = _program(
    lambda net, params, x, y: _lpips(net, params, to_float(x), to_float(y))
)  # of pairs of images
_bound = _program(lambda fixed, weights, *rows: fixed[0].bound(weights, *rows, fixed[1]))


def bound(
    stage: TokenStage,
    weights: Any,
    key: PRNGKey,
    z_0: Tokens | Int[np.ndarray, "b n"],
    ids: TextIds | Int[np.ndarray, "b m"],
    draws: int,
    *,
    devices: Devices | None = None,
) -> Float[Array, " b"]:
    """`stage.bound` of each row, with a key for each."""
    return _bound((stage, draws), weights, _row_keys(key, 0, len(z_0)), z_0, ids, devices=devices)


def sample(
    stage: TokenStage,
    weights: Any,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    seed: int,
    first: int = 0,
    sampler: Sampler | AutoregressiveSampler,
    guidance_config: GuidanceConfig,
    image: Int[np.ndarray, "b n"] | None = None,
    constraint: Constraint | None = None,
    t_start: int | None = None,
    trace: bool = False,
    devices: Devices | None = None,
) -> Any:
    """Tokens for each row of conditions; row i uses the noise of image `first` + i of the seed,
    whatever the batch.

    `scales` are those of guidance. With `image` its tokens are noised to the time `begin` and
    sampling begins there. With `trace` returns (tokens, states (calls, b, n)). Without `devices`
    one does all rows.
    """
    keys, (static_guidance, dynamic) = (
        image_keys(seed, first, scales.shape[1]),
        _settings(guidance_config, scales),
    )
    whole = None if trace or isinstance(stage, AutoregressiveStage) else (0, np.iinfo(np.int32).max)
    out = _sample(
        stage,
        sampler,
        static_guidance,
        t_start,
        trace,
        devices or local_devices(1),
        weights,
        keys,
        conditions,
        dynamic,
        image,
        constraint,
        *_window(stage, whole, len(keys)),
    )
    return jax.tree.map(np.asarray, out)


def watch(
    stage: TokenStage,
    weights: Any,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    seed: int,
    first: int = 0,
    sampler: Sampler | AutoregressiveSampler,
    guidance_config: GuidanceConfig,
    image: Int[np.ndarray, "b n"] | None = None,
    constraint: Constraint | None = None,
    t_start: int | None = None,
) -> Iterator[Int[np.ndarray, "b n"]]:
    """The states of `sample` after each call, each as soon as it is there; the last one is what
    `sample` returns, bit for bit.
    """
    keys, (static_guidance, dynamic) = (
        image_keys(seed, first, scales.shape[1]),
        _settings(guidance_config, scales),
    )
    if isinstance(stage, AutoregressiveStage):
        state = None
        for place in range(math.prod(stage.network.grid) - 1):
            state = _token(
                stage, static_guidance, weights, keys, conditions, dynamic, constraint, state, place
            )
            yield np.asarray(state[1])
        yield sample(
            stage,
            weights,
            conditions,
            scales,
            seed=seed,
            first=first,
            sampler=sampler,
            guidance_config=guidance_config,
            constraint=constraint,
        )
        return
    z = None
    for place in range(
        len(base.call_times(sampler, stage.process, math.prod(stage.denoiser.grid), t_start))
    ):
        # the very program of `sample`, whose loop ends after a call; not compiled again, as it
        # would be for a z that is no NumPy array
        z = np.asarray(
            _sample(
                stage,
                sampler,
                static_guidance,
                t_start,
                False,
                local_devices(1),
                weights,
                keys,
                conditions,
                dynamic,
                image,
                constraint,
                *_window(stage, (place, place + 1), len(keys), z),
            )
        )
        yield z


def _window(
    stage: TokenStage, window: tuple[int, int] | None, rows: int, z: Any = None
) -> tuple[Any, Any]:
    """The window of calls and the state before them, as `_sample` takes them."""
    if window is None:
        return None, None
    return tuple(map(np.int32, window)), np.zeros(
        (rows, math.prod(stage.denoiser.grid)), np.int32
    ) if z is None else z


def _settings(
    guidance_config: GuidanceConfig, scales: Float[np.ndarray, "p b"]
) -> tuple[StaticGuidance, dict[str, Any]]:
    """What is compiled, and the numbers that are not."""
    static_guidance = guidance_config.static_guidance(
        guided=bool((scales != 1).any() or len(scales) > 1)
    )
    return static_guidance, {
        "scales": np.asarray(scales, np.float32),
        "temperature": float(guidance_config.temperature),
        "top_p": float(guidance_config.top_p),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token(stage, static_guidance, weights, keys, conditions, dynamic, constraint, state, place):
    predict = stage.predictor(weights, conditions, dynamic, static_guidance)
    if state is None:
        return autoregressive.start(
            keys, predict, stage.empty(keys), stage.network.codes, constraint
        )
    return autoregressive.next_token(keys, predict, state, place, constraint)


def compiled_samplers() -> int:
    """How many programs for sampling are in memory: one for each kind of request, by sampler, calls
    and number of pictures.
    """
    return _sample._cache_size() + _token._cache_size()


@functools.partial(jax.jit, static_argnums=0)
def cross_entropy(
    stage: DiffusionStage,
    weights: Any,
    z_0: Int[Array, "b n"],
    ids: Int[Array, "b m"],
    constraint: Bool[Array, "b n"],
    t: Int[Array, ""],
) -> Float[Array, "b n"]:
    """-log p(x_0) of every token in nats, at time t, when the `known` tokens are seen and the
    others are [MASK].
    """
    rows = z_0.shape[0]
    logits = stage.predict(
        weights,
        jnp.where(constraint, z_0, stage.process.k),
        jnp.full(rows, t),
        ids,
        jnp.zeros(rows, bool),
    )
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), z_0[..., None], axis=-1)[..., 0]


def attention(
    stage: DiffusionStage,
    weights: Any,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    guidance_config: GuidanceConfig,
    z: Int[np.ndarray, "b n"],
    time: int,
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "p b n m"] | None]:
    """What the network makes of the states z at a time: the probability of each position's
    likeliest code, after guidance, temperature and truncation; and how much each position looks at
    each token of the prompts (`stage.attention`), None for models without text.
    """
    static_guidance, dynamic = _settings(guidance_config, scales)
    guided = bool(static_guidance.guides(1 - np.asarray(stage.process.unmasked)[[time]])[0])
    return jax.tree.map(
        np.asarray,
        _look(
            stage,
            static_guidance,
            guided,
            weights,
            conditions,
            dynamic,
            z,
            np.full(len(z), time, np.int32),
        ),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _look(stage, static_guidance, guided, weights, conditions, dynamic, z, t):
    logits = stage.denoise(weights, conditions, dynamic, static_guidance, guided=guided)(z, t)
    sure = jnp.exp(jax.nn.log_softmax(logits[..., : stage.process.k]).max(-1))
    if stage.denoiser.condition != "text":
        return sure, None
    return sure, jnp.stack([stage.attention(weights, z, t, ids) for ids in conditions.ids[:-1]])


def image_keys(seed: int, first: int, count: int) -> PRNGKeys:
    """The keys of the images `first`, `first` + 1, ... of a seed."""
    return _row_keys(jax.random.key(seed), first, count)


def _row_keys(key: PRNGKey, first: int, count: int) -> PRNGKeys:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(count))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _sample(
    stage,
    sampler,
    static_guidance,
    t_start,
    trace,
    devices,
    weights,
    keys,
    conditions,
    dynamic,
    image,
    constraint,
    window,
    z,
):
    swap = functools.partial(
        jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1)
    )  # so that the rows come first, and back

    def rows(whole, keys, conditions, scales, image, constraint, z):
        weights, dynamic, window = whole
        start = None if image is None else sampler.noised(keys, stage.process, image, t_start)
        late = {} if t_start is None else {"z": start, "begin": t_start}
        if window is not None:
            start = sampler.start(keys, stage.process, z.shape[1]) if start is None else start
            late |= {"z": jnp.where(window[0] == 0, start, z).astype(z.dtype), "window": window}
        out = stage.sample(
            weights,
            keys,
            swap(conditions),
            dynamic | {"scales": swap(scales)},
            sampler,
            static_guidance,
            constraint=constraint,
            trace=trace,
            **late,
        )
        return (out[0], swap(out[1])) if trace else out

    out = map_rows(
        rows,
        devices,
        (weights, dynamic, window),
        keys,
        swap(conditions),
        swap(dynamic["scales"]),
        image,
        constraint,
        z,
    )
    return (out[0], swap(out[1])) if trace else out


@functools.cache
def lpips_params(net: str, devices: Devices) -> Any:
    """The weights of `lpips`, on the devices."""
    return replicate(load_lpips(net), devices)


def _lpips(net: str, params: Any, x: Images, y: Images) -> Float[Array, " b"]:
    with jax.default_matmul_precision(
        "highest"
    ):  # accelerators would round to fewer digits than published numbers have
        return LPIPS(net=net).apply({"params": params}, x, y)
