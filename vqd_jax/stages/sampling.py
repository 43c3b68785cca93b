"""Sampling of tokens: `sample` and `watch` are compiled once for each sampler, kind of guidance and
batch shape, and `DiffusionSampling` is what they run for a diffusion model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqd_jax.core.chunking import map_chunks
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import DenoiseFn, Params, PRNGKey, PRNGKeys, TextIds, Times, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.models.conditioning import Conditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.runtime.devices import Devices, local_devices, map_rows, platform
from vqd_jax.samplers.base import Constraint, Sampler, call_times, sample_loop
from vqd_jax.samplers.guidance import GuidanceConfig, StaticGuidance
from vqd_jax.stages import autoregressive
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.token_stage import AnyConditioner, AnySampler, Conditioning, TokenStage

ALL_CALLS = (0, np.iinfo(np.int32).max)


def sample(
    stage: TokenStage,
    weights: Params,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    seed: int,
    first: int = 0,
    sampler: AnySampler,
    guidance_config: GuidanceConfig,
    image: Int[np.ndarray, "b n"] | None = None,
    constraint: Constraint | None = None,
    t_start: int | None = None,
    trace: bool = False,
    window: tuple[int, int] | None = None,
    z: Int[np.ndarray, "b n"] | None = None,
    devices: Devices | None = None,
) -> Any:
    """Tokens for each row of `conditions`; with `trace` (tokens, states (calls, b, n)): JAX
    arrays, which may still be computed when this returns.

    Row i uses the noise of image `first` + i of the seed, whatever the batch. `scales` are those of
    guidance. With `image`, sampling starts from its tokens noised to the time `t_start`. With
    `window` = (first, end) only these calls are made, from the state z unless first is 0. `devices`
    share the rows; by default one device computes all of them.
    """
    static_guidance, dynamic = guidance_arguments(guidance_config, scales, conditions)
    keys = image_keys(seed, first, scales.shape[1])
    # On a CPU it is the program of `watch`, except for a trace, which has no window; elsewhere a
    # loop whose number of calls is not compiled in would wait for the host at every call.
    if window is None and stage.windowed and not trace and platform() == "cpu":
        window = ALL_CALLS
    return _sample(
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
        *_window_arguments(stage, window, len(keys), z),
    )


def watch(
    stage: TokenStage,
    weights: Params,
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    seed: int,
    first: int = 0,
    sampler: AnySampler,
    guidance_config: GuidanceConfig,
    image: Int[np.ndarray, "b n"] | None = None,
    constraint: Constraint | None = None,
    t_start: int | None = None,
) -> Iterator[Int[np.ndarray, "b n"]]:
    """The states of `sample` after each call, as they are computed. On a CPU the last one equals
    the result of `sample` bit for bit; elsewhere these are two programs, which may round otherwise.
    """
    static_guidance, dynamic = guidance_arguments(guidance_config, scales, conditions)
    keys = image_keys(seed, first, scales.shape[1])

    def run(window: tuple[int, int] | None, z: Int[np.ndarray, "b n"] | None) -> Any:
        return _sample(
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
            *_window_arguments(stage, window, len(keys), z),
        )

    states = stage.watch(
        run,
        weights,
        keys,
        conditions,
        dynamic,
        sampler,
        static_guidance,
        constraint=constraint,
        t_start=t_start,
    )
    yield from map(np.asarray, states)


def _window_arguments(
    stage: TokenStage,
    window: tuple[int, int] | None,
    rows: int,
    z: Int[np.ndarray, "b n"] | None = None,
) -> tuple[Any, Any]:
    """`window` and `z` of `_sample`, of the same types for every window."""
    if window is None:
        return None, None
    z = np.zeros((rows, stage.tokens), np.int32) if z is None else z
    return tuple(map(np.int32, window)), z


def guidance_arguments(
    guidance_config: GuidanceConfig, scales: Float[np.ndarray, "p b"], conditions: Conditioning
) -> tuple[StaticGuidance, dict[str, Any]]:
    """The static part of guidance, and the arguments that need no other compilation."""
    guided, drop = bool((scales != 1).any() or len(scales) > 1), np.asarray(conditions.drop)
    learned_null = bool(drop[-1].all() and not drop[:-1].any())
    return guidance_config.static_guidance(guided=guided, learned_null=guided and learned_null), {
        "scales": np.asarray(scales, np.float32),
        "temperature": float(guidance_config.temperature),
        "top_p": float(guidance_config.top_p),
    }


def traced_sample(
    stage: TokenStage,
    weights: Params,
    keys: Any,  # Any, as these are shapes
    conditions: Conditioning,
    scales: Float[np.ndarray, "p b"],
    *,
    sampler: AnySampler,
    guidance_config: GuidanceConfig,
    devices: Devices,
) -> jax.stages.Traced:
    """The program of `sample`, traced for arguments of these shapes and `devices` that need not be
    here.
    """
    drop = np.zeros(conditions.drop.shape, bool)
    drop[-1] = True  # no negative prompt
    given = dataclasses.replace(conditions, drop=drop)
    static_guidance, dynamic = guidance_arguments(guidance_config, scales, given)
    nothing = (None,) * 4  # image, constraint, window and z
    arguments = (weights, keys, conditions, dynamic, *nothing)
    return _sample.trace(stage, sampler, static_guidance, None, False, devices, *arguments)


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
    # `map_rows` shards the first axis, so rows come first on the way in and out
    swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))

    def rows(replicated, keys, conditions, scales, image, constraint, z):
        weights, dynamic, window = replicated
        given = {"image": image, "t_start": t_start, "window": window, "z": z}
        out = stage.sample(
            weights,
            keys,
            swap(conditions),
            dynamic | {"scales": swap(scales)},
            sampler,
            static_guidance,
            constraint=constraint,
            trace=trace,
            **{name: value for name, value in given.items() if value is not None},
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


def compiled_samplers() -> int:
    """The number of compiled sampling programs in memory."""
    programs: tuple[Any, ...] = (_sample, autoregressive.one_call)
    return sum(program._cache_size() for program in programs)


def limit_compiled_samplers(most: int) -> None:
    """Drops all compiled programs from memory if more than `most` are for sampling.

    Those that are in the compilation cache on disk load again quickly.
    """
    if compiled_samplers() > most:
        jax.clear_caches()


def image_keys(seed: int, first: int, count: int) -> PRNGKeys:
    """The keys of the images `first`, `first` + 1, ... of a seed."""
    return row_keys(root_key(seed), first, count)


def row_keys(key: PRNGKey, first: int, count: int) -> PRNGKeys:
    """`key` folded with each of `first`, `first` + 1, ..."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSampling:
    """A denoiser with its process and its text encoder.

    Parameters are {"denoiser", "conditioner"}, and "adapter" while one is trained.
    """

    process: MaskAndReplace
    denoiser: Denoiser
    conditioner: AnyConditioner
    adapter: Adapter = Adapter()

    windowed = True

    @property
    def tokens(self) -> int:
        return self.denoiser.tokens

    @property
    def positions(self) -> int:
        return math.prod(self.denoiser.grid)

    @property
    def fixed_sampling(self) -> dict[str, Any]:
        return {"guidance": 1.0} if self.denoiser.condition == "none" else {}

    def calls(self, sampler: Sampler, t_start: int | None = None) -> int:
        return len(call_times(sampler, self.process, self.tokens, t_start))

    def condition(
        self, params: Params, ids: TextIds, drop: Bool[Array, " b"]
    ) -> tuple[Any, Bool[Array, "b m"]]:
        """The condition and its mask for the denoiser."""
        return self.conditioner.apply({"params": params.get("conditioner", {})}, ids, drop)

    def merged(self, params: Params) -> Params:
        """The denoiser's parameters, with the adapter merged into its kernels if there is one."""
        if "adapter" not in params:
            return params["denoiser"]
        return self.adapter.merged(params["denoiser"], params["adapter"])

    def sample(
        self,
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: Sampler,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        trace: bool = False,
        image: Tokens | None = None,
        t_start: int | None = None,
        window: tuple[Any, Any] | None = None,
        z: Tokens | None = None,
    ) -> Any:
        """See `TokenStage.sample`.

        `image` is noised to `t_start` instead of starting from noise alone. `window` and `z` are
        those of `samplers.base.sample_loop`; z is not used where the window starts at 0.
        """
        if hasattr(sampler, "groups"):
            sampler = dataclasses.replace(sampler, groups=self.denoiser.groups)
        if image is None:
            state = sampler.start(keys, self.process, self.tokens)
        else:
            state = sampler.noised(keys, self.process, image, t_start)
        if window is not None:
            state = jnp.where(window[0] == 0, state, z).astype(z.dtype)
        masked = 1 - np.asarray(self.process.unmasked)
        times = call_times(sampler, self.process, self.tokens, t_start)
        guides = static_guidance.guides(masked[times]).tolist()
        denoise = {
            guided: self.denoise(params, conditions, dynamic, static_guidance, guided=guided)
            for guided in {*guides}
        }
        return sample_loop(
            sampler,
            keys,
            self.process,
            [denoise[guided] for guided in guides],
            state,
            constraint=constraint,
            t_start=t_start,
            trace=trace,
            window=window,
        )

    def watch(
        self,
        run: Callable[[tuple[int, int] | None, Any], Any],
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: Sampler,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        t_start: int | None = None,
    ) -> Iterator[Int[np.ndarray, "b n"]]:
        """See `TokenStage.watch`: one call of the sampling loop at a time."""
        z = None
        for i in range(self.calls(sampler, t_start)):
            # a NumPy array every time: a device array would be compiled for anew
            z = np.asarray(run((i, i + 1), z))
            yield z

    def denoise(
        self,
        params: Params,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        static_guidance: StaticGuidance,
        *,
        guided: bool,
    ) -> DenoiseFn:
        """`(z_t, t) -> logits` of x_0 after guidance, temperature and truncation.

        The prompts are encoded once, here.
        """
        condition, mask = self._conditions(params, conditions, static_guidance, guided=guided)
        prompts, kernels = condition.shape[1], self.merged(params)
        unmasked = jnp.asarray(self.process.unmasked, jnp.float32)
        flat = lambda x: x.reshape(x.shape[0] * prompts, *x.shape[2:])
        prepared = self.denoiser.prepare(kernels, flat(condition))
        # keys and values of the text are rows of the batch, too
        text = {
            name: layer.pop("kv").reshape(*mask.shape, -1)
            for name, layer in prepared.items()
            if "kv" in layer
        }

        def network(
            z_t: Tokens, t: Times, condition: Any, mask: Any, text: Any
        ) -> Float[Array, "b p n k"]:
            layers = {
                name: layer | ({"kv": flat(text[name])} if text else {})
                for name, layer in prepared.items()
            }
            logits = self.denoiser.apply(
                {"params": kernels},
                z_t,
                t,
                flat(condition),
                flat(mask),
                prepared=layers,
                prompts=prompts,
            )
            return logits.reshape(-1, prompts, *logits.shape[1:])

        def denoise(z_t: Tokens, t: Times) -> Float[Array, "b n k"]:
            logits = map_chunks(
                network,
                z_t,
                t,
                condition,
                mask,
                text,
                elements=prompts * z_t.shape[1] * self.process.k,
                least=2 // prompts,
            )
            logits = logits.swapaxes(0, 1)
            logits = static_guidance.combine(logits, dynamic["scales"], unmasked[t], guided=guided)
            return static_guidance.shape(logits, dynamic["temperature"], dynamic["top_p"])

        return denoise

    def _conditions(
        self,
        params: Params,
        conditions: Conditioning,
        static_guidance: StaticGuidance,
        *,
        guided: bool,
    ) -> tuple[Any, Bool[Array, "b p m"]]:
        """The conditions of each image and their masks, rows (b, p, ...): of its prompts, and with
        `guided` of the negative one. The learned null does not pass through the text encoder.
        """
        ids, drop = conditions.ids, conditions.drop
        learned = isinstance(self.conditioner, Conditioner) and self.conditioner.null == "learned"
        null = guided and learned and static_guidance.learned_null
        if null or not guided:
            ids, drop = ids[:-1], drop[:-1]
        condition, mask = (
            x.reshape(*drop.shape, *x.shape[1:]).swapaxes(0, 1)
            for x in self.condition(params, ids.reshape(drop.size, -1), drop.reshape(-1))
        )
        if null:
            states = params["conditioner"]["null"]
            states = jnp.broadcast_to(states, (len(condition), 1, *states.shape))
            condition = jnp.concatenate([condition, states.astype(condition.dtype)], axis=1)
            mask = jnp.concatenate([mask, jnp.ones_like(mask[:, :1])], axis=1)
        return condition, mask

    def attention(
        self, params: Params, z_t: Tokens, t: Times, ids: TextIds
    ) -> Float[Array, "b l m"]:
        """Cross-attention from each position to each text token, averaged over layers and heads."""
        condition, mask = self.condition(params, ids, jnp.zeros(len(ids), bool))
        unrolled = self.denoiser.clone(remat="none", scan=False)  # whose layers sow their weights
        _, sown = unrolled.apply(
            {"params": self.merged(params)}, z_t, t, condition, mask, mutable="intermediates"
        )
        weights = jax.tree.leaves(sown["intermediates"])
        return sum(w.mean(1) for w in weights) / len(weights)
