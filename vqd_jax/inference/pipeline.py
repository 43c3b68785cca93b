"""A trained workdir as a function from prompts to images; everything it needs is in the
checkpoints.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.data.text.load import Tokenizer, load_tokenizer
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.sharding import local_devices
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Constraint, Sampler
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.lora import Adapter, apply_file
from vqd_jax.stages.token_stage import Conditioning, TokenStage
from vqd_jax.stages.vqvae import VQVAEStage

MAX_PROMPT = 1_000  # characters; the text encoders read far fewer


def compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/vqd_jax."""
    for name, value in (
        ("jax_compilation_cache_dir", str(Path.home() / ".cache" / "vqd_jax" / "xla")),
        ("jax_persistent_cache_min_compile_time_secs", 0.5),
    ):
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)


def forget_programs(most: int) -> None:
    """Drops all compiled programs from memory if more than `most` are for sampling; those kept on
    the disk are soon here again.
    """
    if sampling.compiled_samplers() > most:
        jax.clear_caches()


def check_prompt(prompt: str) -> str:
    """The prompt, or one sentence about what is wrong with it."""
    if not prompt.strip():
        raise UserError("a prompt is empty: write what the picture should show")
    _check_length(prompt)
    return prompt


def _check_length(prompt: str) -> None:
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"a prompt has {len(prompt):,} characters, at most {MAX_PROMPT:,} are accepted"
        )


def escape_prompt(caption: str) -> str:
    """A caption of a data set as a prompt that means just that: no longer than accepted, and
    without AND, which would blend.
    """
    return re.sub(r"\bAND\b", "and", caption)[:MAX_PROMPT]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextToImage:
    """A trained model; `load` makes one. `config.sampling` has the settings it was meant for,
    `entropy` is what `vqd plan` measured, for planned counts.
    """

    config: ConfigDict
    codec: VQVAEStage
    codec_weights: Any
    stage: TokenStage | None
    weights: Any
    tokenizer: Tokenizer | None
    entropy: dict[str, np.ndarray]

    def __call__(
        self, prompts: Sequence[str], *, seed: int = 0, negative_prompt: str = "", **settings: Any
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """One image per prompt; image i depends on (prompt i, seed, i) and the settings.

        A prompt may blend several, with weights: "a cat AND a dog :0.5". `settings` are keys of
        `config.sampling`, such as sampler, calls, guidance, temperature, and options of that
        sampler, such as order; the others are the config's. The sampler is a name, or an object as
        `samplers.run` describes them.
        """
        return self.decode(
            self.tokens(prompts, seed=seed, negative_prompt=negative_prompt, **settings)
        )

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
        """The tokens of the images; row i uses the noise of image `first` + i. `devices` share the
        rows.

        `known` tokens are kept. With `image`, its tokens, sampling begins at the time strength * T.
        With `trace` returns (tokens, the states after each call (calls, b, n), in which k is
        [MASK]).
        """
        drawing = self._drawing(prompts, negative_prompt, image, strength, settings)
        return sampling.sample(
            self.stage,
            self.weights,
            **drawing,
            seed=seed,
            first=first,
            constraint=constraint,
            trace=trace,
            devices=local_devices(devices),
        )

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
        """The tokens of `tokens` and their images after each network call, as they come; [MASK]
        cells are grey.

        The last ones are those of `tokens`, bit for bit.
        """
        drawing = self._drawing(prompts, negative_prompt, image, strength, settings)
        for tokens in sampling.watch(
            self.stage, self.weights, **drawing, seed=seed, first=first, constraint=constraint
        ):
            yield tokens, self.decode_partly(tokens)

    def _drawing(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        image: Int[np.ndarray, "b n"] | None,
        strength: float,
        settings: dict[str, Any],
    ) -> dict[str, Any]:
        """What `programs.sample` and `programs.watch` are told in the same way."""
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
        """The time at which a change of that strength begins, None for the end of the process."""
        if not 0 < strength <= 1:
            raise UserError(f"strength must lie in (0, 1], got {strength:g}")
        return None if strength == 1 else max(round(strength * self.process.T), 1)

    @property
    def process(self) -> MaskAndReplace:
        if self.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")
        if isinstance(self.stage, AutoregressiveStage):
            raise UserError(
                "this is an autoregressive model: it has no diffusion times, so that there is no "
                "strength and no plan"
            )
        return self.stage.process

    def settings(
        self, *, t_start: int | None = None, **settings: Any
    ) -> tuple[Sampler | AutoregressiveSampler, GuidanceConfig]:
        """The sampler and the treatment of p(x_0) that `settings` ask for, the config's where they
        are silent.

        A sampler that is no name, but an object, has its calls and options itself.
        """
        asked = {name: value for name, value in settings.items() if value is not None}
        chosen = dict(self.config.sampling) | {
            name: asked.pop(name) for name in list(asked) if name in self.config.sampling
        }
        own = fixed_sampling(self.stage)
        if not own and isinstance(chosen["sampler"], Sampler):
            if beside := sorted(asked.keys() | settings.keys() & {"calls"}):
                raise UserError(f"a sampler of one's own has {beside[0]} itself: say it there")
            return chosen["sampler"], GuidanceConfig(
                **{
                    name: value
                    for name, value in chosen.items()
                    if name not in ("sampler", "calls")
                }
            )
        if wrong := [name for name in own if chosen[name] != own[name]]:
            kind = (
                "autoregressive model"
                if own["sampler"] == "autoregressive"
                else "model, which predicts the previous state,"
            )
            raise UserError(
                f"for this {kind} {wrong[0]} can only be {own[wrong[0]]}, got {chosen[wrong[0]]}"
            )
        if not own and chosen["sampler"] in ("autoregressive", "previous"):
            raise UserError(
                f"the sampler {chosen['sampler']} is for such models, and this one learned to "
                "predict x_0 in a diffusion"
            )
        if not own and chosen["sampler"] != "counts":
            if not 1 <= chosen["calls"] <= self.process.T:
                raise UserError(f"calls must be in 1..{self.process.T}, got {chosen['calls']}")
            chosen["calls"] = min(chosen["calls"], t_start or self.process.T)
        return build.sampling(
            self.config, entropy=self.entropy, options=asked, from_noise=t_start is None, **chosen
        )

    def prompts(self, asked: Sequence[str], *, labels: bool = False) -> list[str]:
        """What `sample` is to draw, or one sentence about what is missing; a model without any
        condition needs nothing.
        """
        kind = self.config.condition.kind
        if kind == "none":
            if asked:
                raise UserError(
                    "this model draws without any condition: leave out --prompt and --label"
                )
            return [""]
        if labels and kind != "class":
            raise UserError("--label is for class models, this one draws from text: use --prompt")
        if not asked:
            raise UserError(
                '--prompt is missing, for example --prompt="a google style emoji of a red apple"'
                if kind == "text"
                else f"--label is missing: a class from 0 to {self.config.condition.classes - 1}"
            )
        return [*asked]

    def conditions(
        self, prompts: Sequence[str], negative_prompt: str, guidance_config: GuidanceConfig
    ) -> tuple[Conditioning, np.ndarray]:
        """The texts, or classes, of each image and their scales of guidance (p, b)."""
        if negative_prompt and guidance_config.guidance == 1:
            raise UserError(
                "a negative prompt acts through guidance, and a guidance of 1 is none: choose "
                "another scale"
            )
        _check_length(negative_prompt)
        kind = self.config.condition.kind
        if kind == "none" and guidance_config.guidance != 1:
            raise UserError(
                "this model draws without any condition, so that guidance must be 1, got "
                f"{guidance_config.guidance:g}"
            )
        blends = [
            [(prompt, 1.0)] if kind == "none" else split_prompt(check_prompt(prompt))
            for prompt in prompts
        ]
        count = max(map(len, blends))
        padded = [blend + [(blend[0][0], 0.0)] * (count - len(blend)) for blend in blends]
        dropped = not negative_prompt and (guidance_config.null == "learned" or kind != "text")
        away = [blend[0] for blend in blends] if dropped else [(negative_prompt, 1.0)] * len(blends)
        rows = [*zip(*padded), away]
        ids = np.stack([self.tokenizer([text for text, _ in row]) for row in rows])
        drop = np.zeros(ids.shape[:2], bool)
        drop[-1] = dropped
        return Conditioning(ids, drop), guidance_config.guidance * np.array(
            [[weight for _, weight in row] for row in rows[:-1]], np.float32
        )

    def batches(
        self, prompts: Sequence[str], batch: int, *, seed: int = 0, start: int = 0, **settings: Any
    ) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The images of `prompts`, at most `batch` at a time on each local device; one program
        makes them all.

        The last batch is padded. Image i depends on (prompt i, seed, i, batch) and the settings,
        not on the number of devices. With `start`, a multiple of `batch`, the images before that
        one are left out.
        """
        devices = len(local_devices(-(-(len(prompts) - start) // batch)))
        for first in range(start, len(prompts), rows := batch * devices):
            part = [*prompts[first : first + rows]]
            padded = part + part[-1:] * (rows - len(part))
            yield self.decode(
                self.tokens(padded, seed=seed, first=first, devices=devices, **settings),
                devices=devices,
            )[: len(part)]

    def encode(self, images: UInt8[np.ndarray, "b H W 3"]) -> Int[np.ndarray, "b n"]:
        """Images of the model's size to tokens in [0, k), row by row."""
        size = self.config.data.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise UserError(
                f"encode takes uint8 images (b, {size}, {size}, 3), got {images.dtype} "
                f"{images.shape}"
            )
        return np.asarray(jitted.encode(self.codec, self.codec_weights, images))

    def decode(
        self, tokens: Int[np.ndarray, "b n"], *, devices: int = 0
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Tokens to images. `devices` share the rows; 0 for all that are here."""
        return np.asarray(
            jitted.decode(
                self.codec,
                self.codec_weights,
                tokens,
                devices=local_devices(devices or len(tokens)),
            )
        )

    def decode_partly(self, tokens: Int[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b H W 3"]:
        """`decode` of tokens of which some are [MASK]: those cells are grey, and shown to the
        decoder as code 0.
        """
        masked = tokens == self.config.codebook.codes
        side = math.isqrt(tokens.shape[1])
        cells = (
            masked.reshape(-1, side, side)
            .repeat(self.codec.model.downsampling, 1)
            .repeat(self.codec.model.downsampling, 2)
        )
        return np.where(cells[..., None], np.uint8(190), self.decode(np.where(masked, 0, tokens)))


def split_prompt(prompt: str) -> list[tuple[str, float]]:
    """ "a cat AND a dog :0.5" -> [("a cat", 1.0), ("a dog", 0.5)]."""
    out = []
    for part in re.split(r"\bAND\b", prompt):
        text, weight = re.fullmatch(r"(.*?)(?::\s*(-?\d+(?:\.\d+)?))?\s*", part, re.DOTALL).groups()
        out.append((check_prompt(text.strip()), float(weight or 1)))
    if len(out) > 1 and not sum(weight for _, weight in out) > 0:
        raise UserError(f"the weights of a blend must have a positive sum, got {prompt!r}")
    return out if len(out) > 1 else [(prompt, 1.0)]


def fixed_sampling(stage: TokenStage | None) -> dict[str, Any]:
    """The keys of config.sampling over which a model has no choice."""
    if isinstance(stage, AutoregressiveStage):
        return {"sampler": "autoregressive", "calls": math.prod(stage.network.grid)}
    return (
        {"sampler": "previous", "calls": stage.process.T}
        if stage and stage.denoiser.predict == "previous"
        else {}
    )


def token_stage(workdir: str | os.PathLike, wanted: str | None = None) -> str | None:
    """Which stage over tokens a workdir holds, "diffusion" if both, None without any; UserError if
    it lacks the wanted one.
    """
    found = [
        name
        for name in build.TOKEN_STAGES
        if Checkpoints(Workdir(Path(workdir)).checkpoints(name), read_only=True).latest_step() is not None
    ]
    if wanted and wanted not in found:
        raise UserError(
            f"the workdir {workdir} has no stage {wanted}" + (f", only {found[0]}" if found else "")
        )
    return wanted or next(iter(found), None)


def load(
    workdir: str | os.PathLike,
    plan: str | os.PathLike | None = None,
    *,
    stage: str | None = None,
    adapter: str | os.PathLike | None = None,
    adapter_scale: float = 1.0,
) -> TextToImage:
    """The model in a workdir that `vqd_jax.main` made; nothing is written there. UserError if there
    is none.

    `plan` is a file by `vqd plan` to use instead of the workdir's own; `stage` says which model of
    a workdir that has "diffusion" and "autoregressive". `adapter` is a file that training with
    `adapter.rank` wrote: it changes the model in the workdir that it began with, `adapter_scale`
    times.
    """
    if not Path(workdir).is_dir():
        raise UserError(
            f"there is no workdir {workdir}: train one with python -m vqd_jax.main, or use "
            "pretrained/emoji"
        )
    compilation_cache()
    config, codec_weights = _stage(workdir, "vqvae", "config", "weights")
    config = complete(config)
    model = weights = tokenizer = None
    if name := token_stage(workdir, stage):
        config, weights = stored_model(workdir, name)
        tokenizer = load_tokenizer(*_stage(workdir, name, "tokenizer"))
        model = build.TOKEN_STAGES[name](config, tokenizer)
        config.sampling.update(fixed_sampling(model))
    if adapter and name != "diffusion":
        raise UserError(
            f"an adapter changes a denoiser, and what is loaded from {workdir} has none"
        )
    if adapter:
        weights["denoiser"] = apply_file(adapter, weights["denoiser"], scale=adapter_scale)
    return TextToImage(
        config=config,
        codec=build.vqvae_stage(config),
        codec_weights=_put(codec_weights),
        stage=model,
        weights=_put(weights),
        tokenizer=tokenizer,
        entropy=read_plan(workdir, plan),
    )


def _put(tree: Any) -> Any:
    """The weights on the device; the dictionaries are emptied on the way, so that memory never
    holds large ones twice.
    """
    return (
        {name: _put(tree.pop(name)) for name in list(tree)}
        if isinstance(tree, dict)
        else tree
        if tree is None
        else jnp.asarray(tree)
    )


def stored_model(workdir: str | os.PathLike, stage: str) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, weights) of a stage over tokens; an adapter that was trained there has become part
    of the kernels.
    """
    stored, weights = _stage(workdir, stage, "config", "weights")
    config = complete(stored)
    if parts := weights.pop("adapter", None):
        weights["denoiser"] = jax.device_get(
            Adapter(**config.adapter).merged(weights["denoiser"], parts)
        )
    return config, weights


def write_plan(workdir: str | os.PathLike, entropy: dict[str, np.ndarray]) -> None:
    """Keeps cross-entropies by order in the workdir's own file."""
    with atomic_write(Workdir(Path(workdir)).plan, "the plan") as part, part.open("wb") as file:
        np.savez(file, **entropy)


def read_plan(
    workdir: str | os.PathLike, plan: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """The cross-entropies in `plan`, else in the workdir's own file; none where that has none."""
    path = Path(plan) if plan else Workdir(Path(workdir)).plan
    if plan and not path.is_file():
        raise UserError(f"there is no plan {path}: make one with vqd plan")
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            return dict(stored)
    except Exception as error:  # damaged archives raise nearly anything
        raise UserError(
            f"the plan {path} is damaged ({type(error).__name__}): delete it or make it again with "
            "vqd plan"
        ) from error


def _stage(workdir: str | os.PathLike, stage: str, *items: str) -> list[Any]:
    checkpoints = Checkpoints(Workdir(Path(workdir)).checkpoints(stage), read_only=True)
    return [widen(checkpoints.restore(item)) for item in items]
