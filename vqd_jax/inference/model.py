"""A trained model: its parts, the settings that it takes, and from prompts to tokens to images."""

import collections
import dataclasses
import difflib
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.config.defaults import sampler_options
from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Params
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.data.transforms import SizedTransform
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.inference.loading import StageCheckpoint
from vqd_jax.inference.prompts import conditioning, requested_prompts
from vqd_jax.runtime.devices import Devices, local_devices, platform, replicate
from vqd_jax.samplers.base import Constraint, Sampler
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.token_stage import AnySampler, Conditioning, TokenStage
from vqd_jax.stages.vqvae import VQVAEStage

GREY = np.uint8(190)  # of positions that are still [MASK]
# What other libraries, and the papers, call it
OTHER_NAMES = {
    "num_inference_steps": "calls",
    "steps": "calls",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "num_images_per_prompt": "num",
    "generator": "seed",
    "output_type": "output",
    "callback_on_step_end": "callback",
    "negative": "negative_prompt",
    "init_image": "image",
    "mask_image": "mask",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A trained model; `inference.pipeline` loads it and has the methods for its users.

    Attributes:
      config: the training config; `config.sampling` has the default settings.
      codec, codec_weights: the VQ-VAE.
      stage, weights: the model over tokens; None where only the codec is trained.
      tokenizer: prompts to text ids.
      entropy: returns what `vqd plan` measured for each order, for planned counts.
      checkpoints: from which the stages were loaded.
      stored_digest: `digest`, where kernels are not kept in the dtype in which they are stored.
    """

    config: ConfigDict
    codec: VQVAEStage
    codec_weights: Params
    stage: TokenStage | None
    weights: Params | None
    tokenizer: Tokenizer | None
    entropy: Callable[[], dict[str, np.ndarray]] = dict
    checkpoints: tuple[StageCheckpoint, ...] = ()
    stored_digest: str = ""

    @property
    def square(self) -> SizedTransform:
        """From an image of any shape to that of the model, as held-out images were read."""
        return build.transform(self.config, training=False)

    def tokens(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        first: int = 0,
        negative_prompt: str = "",
        constraint: Constraint | None = None,
        image: Int[np.ndarray, "b n"] | None = None,
        strength: float = 1.0,
        trace: bool = False,
        devices: int = 1,
        **settings: Any,
    ) -> Any:
        """The tokens of the images (b, n), one for each prompt; row i uses the noise of image
        `first` + i.

        `constraint` has tokens to keep. With `image`, sampling starts from its tokens at the time
        strength * T. With `trace` the result is (tokens, states after each call (calls, b, n)), in
        which k is [MASK]. `devices` share the rows.
        """
        arguments = self._arguments(prompts, negative_prompt, image, strength, settings)
        options = dict(seed=seed, first=first, constraint=constraint, trace=trace)
        return jax.tree.map(
            np.asarray, self._sample(local_devices(devices), **arguments, **options)
        )

    def _sample(self, devices: Devices, **arguments: Any) -> Any:
        return sampling.sample(self.stage, self.on(devices)[0], **arguments, devices=devices)

    def watch(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        first: int = 0,
        negative_prompt: str = "",
        constraint: Constraint | None = None,
        image: Int[np.ndarray, "b n"] | None = None,
        strength: float = 1.0,
        **settings: Any,
    ) -> Iterator[tuple[Int[np.ndarray, "b n"], UInt8[np.ndarray, "b H W 3"]]]:
        """(tokens, images) after each network call, as they are computed; [MASK] is grey.

        The last ones are those of `tokens`, on a CPU bit for bit.
        """
        arguments = self._arguments(prompts, negative_prompt, image, strength, settings)
        for tokens in sampling.watch(
            self.stage, self.weights, **arguments, seed=seed, first=first, constraint=constraint
        ):
            yield tokens, self.decode_partial(tokens)

    def _arguments(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        image: Int[np.ndarray, "b n"] | None,
        strength: float,
        settings: dict[str, Any],
    ) -> dict[str, Any]:
        """The arguments that `sampling.sample` and `sampling.watch` share."""
        t_start = self.t_start(strength)
        sampler, guidance_config = self.settings(t_start=t_start, **settings)
        conditions, scales = self.conditions(prompts, negative_prompt, guidance_config)
        return dict(
            conditions=conditions,
            scales=scales,
            sampler=sampler,
            guidance_config=guidance_config,
            t_start=t_start,
            image=None if t_start is None else image,
        )

    def t_start(self, strength: float) -> int | None:
        """The time at which image-to-image of that strength starts; None, for T, at strength 1."""
        if not 0 < strength <= 1:
            raise UserError(f"strength must lie in (0, 1], got {strength:g}")
        return None if strength == 1 else max(round(strength * self.process.T), 1)

    @property
    def process(self) -> MaskAndReplace:
        """The diffusion process. UserError for models without one."""
        if self.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")
        if self.stage.process is None:
            raise UserError(
                "this is an autoregressive model, which has no diffusion times: strength, plan and "
                "explain need a diffusion model"
            )
        return self.stage.process

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of all weights, as they are stored."""
        return self.stored_digest or weights_digest(self.weights, self.codec_weights)

    def on(self, devices: Devices) -> tuple[Params | None, Params]:
        """(weights, codec_weights) for functions whose rows these devices share. Several devices
        get their copies once, and keep them until others are asked for.
        """
        if len(devices) == 1:
            return self.weights, self.codec_weights
        if devices not in self._copies:
            self._copies.clear()
            self._copies[devices] = replicate((self.weights, self.codec_weights), devices)
        return self._copies[devices]

    @functools.cached_property
    def _copies(self) -> dict[Devices, tuple[Params | None, Params]]:
        return {}

    @property
    def fixed_sampling(self) -> dict[str, Any]:
        """Keys of `config.sampling` that have only one value for this model."""
        return self.stage.fixed_sampling if self.stage else {}

    def settings(
        self, *, t_start: int | None = None, **settings: Any
    ) -> tuple[AnySampler, GuidanceConfig]:
        """The sampler and the guidance config of `settings`, with the config's defaults.

        A sampler object has its own calls and options.
        """
        check_names(self.config, settings)
        options = {name: value for name, value in settings.items() if value is not None}
        chosen = dict(self.config.sampling) | {
            name: options.pop(name) for name in list(options) if name in self.config.sampling
        }
        diffusion = self.stage is None or self.stage.process is not None
        if diffusion and isinstance(chosen["sampler"], Sampler):
            if given := sorted(options.keys() | settings.keys() & {"calls"}):
                raise UserError(
                    f"a sampler object has its own {given[0]}: set it there, not beside the sampler"
                )
            guidance = {k: v for k, v in chosen.items() if k not in ("sampler", "calls")}
            return chosen["sampler"], GuidanceConfig(**guidance)
        for name, value in self.fixed_sampling.items():
            if chosen[name] != value:
                kind = "a model without conditions" if diffusion else "this autoregressive model"
                raise UserError(f"for {kind} {name} can only be {value}, got {chosen[name]}")
        if diffusion and chosen["sampler"] == "autoregressive":
            raise UserError(
                "the sampler autoregressive is for autoregressive models, and this is a diffusion "
                "model"
            )
        if diffusion and chosen["sampler"] != "counts":
            if not 1 <= chosen["calls"] <= self.process.T:
                raise UserError(f"calls must be in 1..{self.process.T}, got {chosen['calls']}")
            chosen["calls"] = min(chosen["calls"], t_start or self.process.T)
        return build.sampling(
            self.config, entropy=self.entropy, options=options, t_start=t_start, **chosen
        )

    def prompts(self, prompts: Sequence[str], *, labels: bool = False) -> list[str]:
        """See `prompts.requested_prompts`."""
        condition = self.config.condition
        return requested_prompts(condition.kind, condition.classes, prompts, labels=labels)

    def conditions(
        self, prompts: Sequence[str], negative_prompt: str, guidance_config: GuidanceConfig
    ) -> tuple[Conditioning, Float[np.ndarray, "p b"]]:
        """See `prompts.conditioning`."""
        kind = self.config.condition.kind
        return conditioning(kind, self.tokenizer, prompts, negative_prompt, guidance_config)

    def batches(
        self,
        prompts: Sequence[str],
        batch: int,
        *,
        seed: int = 0,
        start: int = 0,
        negative_prompt: str = "",
        **settings: Any,
    ) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The images of `prompts`, at most `batch` at a time on each local device, all by one
        compiled program: the last batch is padded.

        Image i depends on (prompt i, seed, i, batch) and the settings, not on the number of
        devices. `start`, a multiple of `batch`, skips the images before it. Accelerators draw a
        batch while the caller has the one before it.
        """
        devices = local_devices(-(-(len(prompts) - start) // batch))
        rows = batch * len(devices)
        drawn: collections.deque[tuple[Any, int]] = collections.deque()
        for first in range(start, len(prompts), rows):
            part = [*prompts[first : first + rows]]
            padded = part + part[-1:] * (rows - len(part))
            arguments = self._arguments(padded, negative_prompt, None, 1.0, settings)
            tokens = self._sample(devices, **arguments, seed=seed, first=first)
            drawn.append((self._decode(tokens, devices), len(part)))
            if len(drawn) > self._ahead:
                yield _finished(*drawn.popleft())
        for images, valid in drawn:
            yield _finished(images, valid)

    @property
    def _ahead(self) -> int:
        """How many batches `batches` starts before it waits for one: more would share a CPU."""
        return 0 if platform() == "cpu" else 1

    def encode(self, images: UInt8[np.ndarray, "b H W 3"]) -> Int[np.ndarray, "b n"]:
        """Images of the model's size to tokens in [0, k), in raster order; of several groups of
        codes all tokens of the coarsest come first.
        """
        size = self.config.data.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise UserError(
                f"encode takes uint8 images (b, {size}, {size}, 3), got {images.dtype} "
                f"{images.shape}"
            )
        devices = local_devices(len(images))
        return np.asarray(jitted.encode(self.codec, self.on(devices)[1], images, devices=devices))

    def decode(
        self, tokens: Int[np.ndarray, "b n"], *, devices: int = 0
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Tokens to images. `devices` share the rows; 0 for all local ones."""
        return np.asarray(self._decode(tokens, local_devices(devices or len(tokens))))

    def _decode(self, tokens: Any, devices: Devices) -> UInt8[Array, "b H W 3"]:
        return jitted.decode(self.codec, self.on(devices)[1], tokens, devices=devices)

    def decode_partial(self, tokens: Int[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b H W 3"]:
        """`decode` of tokens of which some are [MASK]: grey, and code 0 for the decoder. With
        several groups of codes this is for the coarsest ones; the finer ones add nothing.
        """
        positions = tokens.shape[1] // self.codec.codebook.groups
        masked = tokens == self.config.codebook.codes
        masked[:, positions:] = False
        side, scale = math.isqrt(positions), self.codec.model.downsampling
        grey = masked[:, :positions].reshape(-1, side, side).repeat(scale, 1).repeat(scale, 2)
        return np.where(grey[..., None], GREY, self.decode(np.where(masked, 0, tokens)))


def _finished(images: UInt8[Array, "b H W 3"], valid: int) -> UInt8[np.ndarray, "valid H W 3"]:
    return np.asarray(images)[:valid]


def weights_digest(weights: Params | None, codec_weights: Params) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path((weights, codec_weights)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def check_names(config: ConfigDict, names: Iterable[str], *, beside: Sequence[str] = ()) -> None:
    """UserError for a name that is neither a setting of any sampler nor one of `beside`."""
    known = dict.fromkeys([*beside, "negative_prompt", *config.sampling, *sampler_options()])
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            meant = OTHER_NAMES.get(name) or next(iter(near), None)
            kind = "field" if beside else "setting"
            raise UserError(
                f"unknown {kind} {name!r:.80}; "
                + (f"did you mean {meant!r}?" if meant else f"known are {', '.join(known)}")
            )
