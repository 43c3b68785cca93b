"""A trained workdir as a function from prompts to images; everything it needs is in the checkpoints."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from vqd_jax import build
from vqd_jax.checkpoint import Checkpoints, widen
from vqd_jax.errors import UserError
from vqd_jax.text.load import Tokenizer, load_tokenizer
from vqd_jax.train import programs
from vqd_jax.train.diffusion import DiffusionStage
from vqd_jax.train.vqvae import VQVAEStage

MAX_PROMPT = 1_000  # characters; the text encoders read far fewer


def compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/vqd_jax."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "vqd_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def stage_folder(workdir: str | os.PathLike, stage: str) -> Path:
    return Path(workdir) / stage / "checkpoints"


def check_prompt(prompt: str) -> str:
    """The prompt, or one sentence about what is wrong with it."""
    if not prompt.strip():
        raise UserError("a prompt is empty: write what the picture should show")
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"a prompt has {len(prompt):,} characters, at most {MAX_PROMPT:,} are accepted")
    return prompt


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextToImage:
    """A trained model; `load` makes one. `config.sampling` has the settings it was meant for."""

    config: ConfigDict
    codec: VQVAEStage
    codec_weights: Any
    stage: DiffusionStage | None
    weights: Any
    tokenizer: Tokenizer | None

    def __call__(self, prompts: Sequence[str], *, seed: int = 0, calls: int | None = None, guidance: float | None = None,
                 temperature: float | None = None, top_p: float | None = None) -> UInt8[np.ndarray, "b H W 3"]:
        """One image per prompt; image i depends on (prompt i, seed, i) and the settings, whose defaults are the config's."""
        return self.decode(self.tokens(prompts, seed=seed, calls=calls, guidance=guidance, temperature=temperature, top_p=top_p))

    def tokens(self, prompts: Sequence[str], *, seed: int = 0, first: int = 0, calls: int | None = None,
               guidance: float | None = None, temperature: float | None = None,
               top_p: float | None = None) -> Int[np.ndarray, "b n"]:
        """The tokens of the images; row i uses the noise of image `first` + i."""
        if self.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")
        default = self.config.sampling
        pick = lambda value, name: default[name] if value is None else value
        calls, guidance = pick(calls, "calls"), float(pick(guidance, "guidance"))
        temperature, top_p = float(pick(temperature, "temperature")), float(pick(top_p, "top_p"))
        if not 1 <= calls <= self.stage.process.T:
            raise UserError(f"calls must be in 1..{self.stage.process.T}, got {calls}")
        if not temperature > 0 or not 0 < top_p <= 1 or not np.isfinite([guidance, temperature]).all():
            raise UserError(f"temperature must be positive and top_p in (0, 1], got {temperature:g} and {top_p:g}")
        ids = self.tokenizer([check_prompt(p) for p in prompts])
        return programs.sample(self.stage, self.weights, ids, seed=seed, first=first, calls=calls, guidance=guidance,
                               temperature=temperature, top_p=top_p)

    def batches(self, prompts: Sequence[str], batch: int, *, seed: int = 0, **settings: Any) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The images of `prompts`, at most `batch` at a time; the last batch is padded, so that one program makes all."""
        for first in range(0, len(prompts), batch):
            part = [*prompts[first:first + batch]]
            padded = part + part[-1:] * (batch - len(part))
            yield self.decode(self.tokens(padded, seed=seed, first=first, **settings))[:len(part)]

    def encode(self, images: UInt8[np.ndarray, "b H W 3"]) -> Int[np.ndarray, "b n"]:
        """Images of the model's size to tokens in [0, k), row by row."""
        size = self.config.data.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise UserError(f"encode takes uint8 images (b, {size}, {size}, 3), got {images.dtype} {images.shape}")
        return np.asarray(programs.encode(self.codec, self.codec_weights, images))

    def decode(self, tokens: Int[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b H W 3"]:
        """Tokens to images."""
        return np.asarray(programs.decode(self.codec, self.codec_weights, tokens))


def load(workdir: str | os.PathLike) -> TextToImage:
    """The model in a workdir that `vqd_jax.main` made; nothing is written there. UserError if there is none."""
    if not Path(workdir).is_dir():
        raise UserError(f"there is no workdir {workdir}: train one with python -m vqd_jax.main, or use pretrained/emoji")
    compilation_cache()
    config, codec_weights = _stage(workdir, "vqvae", "config", "weights")
    config = ConfigDict(config)
    stage = weights = tokenizer = None
    if Checkpoints(stage_folder(workdir, "diffusion"), read_only=True).latest_step() is not None:
        stored, weights, text = _stage(workdir, "diffusion", "config", "weights", "tokenizer")
        config, tokenizer = ConfigDict(stored), load_tokenizer(text)
        stage = build.diffusion_stage(config, tokenizer)
    put = lambda tree: jax.tree.map(jnp.asarray, tree)
    return TextToImage(config=config, codec=build.vqvae_stage(config), codec_weights=put(codec_weights), stage=stage,
                       weights=put(weights), tokenizer=tokenizer)


def _stage(workdir: str | os.PathLike, stage: str, *items: str) -> list[Any]:
    checkpoints = Checkpoints(stage_folder(workdir, stage), read_only=True)
    return [widen(checkpoints.restore(item)) for item in items]
