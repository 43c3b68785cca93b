"""Evaluation on held-out data during training: numbers and images of each stage.

Collective: the rows are sharded over the devices of all processes, and every process gets the same
numbers.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vqd_jax.core.checksums import array_bytes
from vqd_jax.core.files import atomic_write
from vqd_jax.core.image_grid import caption_metadata, grid, save_png, side_by_side
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.data.batches import ROWS, evaluation_records, indices, spread
from vqd_jax.data.loader import sequential
from vqd_jax.data.source import Source
from vqd_jax.data.splits import CELLS, ITEMS, TRAIN
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.eval import intervals
from vqd_jax.eval.reconstruction import WINDOW, codebook_use, psnr, ssim
from vqd_jax.runtime.devices import all_devices, replicate
from vqd_jax.runtime.progress import bar
from vqd_jax.runtime.workdir import StageFolder
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Sampler
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.token_stage import Conditioning, TokenStage
from vqd_jax.stages.vqvae import VQVAEStage


def bits(nats: Any) -> Any:
    return nats / math.log(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecEvaluation:
    """PSNR, SSIM, LPIPS, codebook use and perplexity on held-out images. Also writes an image of
    originals above reconstructions and codes-STEP.npy, how often each code was used (k,); with
    several groups of codes, the counts of one group follow those of the other, and use and
    perplexity are means over the groups.

    Attributes:
      folder: for the files; None writes none.
      lpips: networks of the perceptual distance: vgg, alex, both or none.
      examples: at most.
      intervals: also return the 95 % interval of each mean over images, as NAME_interval.
      splits: whose images are evaluated, or halves of them; those of training if there are none.

    Images smaller than SSIM's window have no SSIM.
    """

    stage: VQVAEStage
    source: Source
    transform: Callable
    folder: Path | None
    lpips: tuple[str, ...]
    examples: int
    intervals: bool = False
    splits: tuple[str, ...] = (CELLS, ITEMS)

    def __call__(self, step: int, weights: Params) -> dict[str, Any]:
        chosen = spread(
            indices(self.source, *self.splits) or indices(self.source, TRAIN),
            self.examples,
        )
        if not chosen:
            return {}
        load = lambda i, rng: {"image": self.transform(self.source[i]["image"], None)}
        batches: dict[str, list[np.ndarray]] = {"tokens": [], "outputs": [], "images": []}
        distances: dict[str, list[np.ndarray]] = {net: [] for net in self.lpips}
        devices = all_devices()
        weights = replicate(weights, devices)
        for batch, valid in sequential(chosen, ROWS, load):
            z = jitted.encode(self.stage, weights, batch["image"], devices=devices)
            output = jitted.decode(self.stage, weights, z, devices=devices)
            for net, kept in distances.items():
                distance = jitted.lpips(
                    net, jitted.lpips_params(net, devices), batch["image"], output, devices=devices
                )
                kept.append(np.asarray(distance)[:valid])
            for name, value in (("tokens", z), ("outputs", output), ("images", batch["image"])):
                batches[name].append(np.asarray(value)[:valid])
        tokens, outputs, images = map(np.concatenate, batches.values())
        each = {"psnr": psnr(images, outputs)}
        if min(images.shape[1:3]) >= WINDOW:
            each["ssim"] = ssim(images, outputs)
        each |= {
            "lpips" if net == "vgg" else f"lpips_{net}": np.concatenate(kept)
            for net, kept in distances.items()
        }
        values: dict[str, Any] = {}
        for name, of_images in each.items():
            values |= intervals.mean(name, of_images)
        if not self.intervals:
            values = {name: values[name] for name in each}
        book = self.stage.codebook
        groups = np.split(tokens, book.groups, axis=1)
        uses = [codebook_use(group, book.codes) for group in groups]
        values["perplexity"], values["codes_in_use"] = np.mean(uses, axis=0).tolist()
        if self.folder:
            shown = spread(list(range(len(images))), 16)
            save_png(
                StageFolder(self.folder).reconstructions(step),
                side_by_side(images[shown], outputs[shown], scale=3),
            )
            counts = [np.bincount(group.ravel(), minlength=book.codes) for group in groups]
            file = StageFolder(self.folder).codes(step)
            with atomic_write(file, "the use of the codes") as part:
                part.write_bytes(array_bytes(np.concatenate(counts)))
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """-log p of records given their first captions, in nats per token: the variational bound, with
    the same noise every time, or the exact value of an autoregressive model.

    Attributes:
      tokens: of all records, or of those to evaluate by index.
      draws: times per record at which the bound is estimated, see `DiffusionStage.bound`.
    """

    stage: TokenStage
    source: Source
    tokens: np.ndarray | dict[int, np.ndarray]
    tokenizer: Tokenizer
    draws: int

    def __call__(self, weights: Params, chosen: list[int]) -> float:
        return float(self.values(weights, chosen, self.draws).mean())

    def measures(
        self, weights: Params, chosen: list[int], budget: int = 0, description: str = "bound"
    ) -> dict[str, Any]:
        """The mean in nats and bits per token, with standard errors and 95 % intervals over the
        records, which contain the noise of the estimate.

        If `budget` network calls allow more than `draws` times per record, more are taken, and at
        most every time in turn. A progress bar shows `description`.
        """
        process = self.stage.process
        draws = self.draws
        if process is not None:
            draws = max(draws, min(process.T, budget // len(chosen)))
        with bar(len(chosen), description=description, unit="image") as progress:
            nats = self.values(weights, chosen, draws, progress.update)
        out = {}
        for unit, values in (("nats_per_token", nats), ("bits_per_token", bits(nats))):
            out |= intervals.mean(unit, values)
            if len(values) > 1:
                out[f"{unit}_standard_error"] = intervals.standard_error(values)
        return out | {"images": len(chosen), "draws": draws}

    def values(
        self,
        weights: Params,
        chosen: list[int],
        draws: int,
        done: Callable[[int], None] = lambda n: None,
    ) -> Float[np.ndarray, " records"]:
        """The estimate for each record, in nats per token. `done` is called with the number of
        records after each batch.
        """
        load = lambda i, rng: {
            "tokens": self.tokens[i],
            "text": self.tokenizer(self.source.records[i].captions[:1])[0],
        }
        devices = all_devices()
        nats, weights = [], replicate(weights, devices)
        for j, (batch, valid) in enumerate(sequential(chosen, ROWS, load)):
            key = jax.random.fold_in(root_key(0), j)
            value = jitted.bound(
                self.stage,
                weights,
                key,
                batch["tokens"],
                batch["text"],
                draws,
                devices=devices,
            )
            nats.append(np.asarray(value)[:valid])
            done(valid)
        return np.concatenate(nats)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenEvaluation:
    """The bound in nats and bits per token on each split; also writes an image of samples for
    fixed prompts and noise.
    """

    bound: Bound
    codec: Params
    folder: Path
    examples: int
    prompts: tuple[str, ...]
    sampler: Sampler | AutoregressiveSampler
    guidance_config: GuidanceConfig

    def __call__(self, step: int, weights: Params) -> dict[str, float]:
        devices = all_devices()
        values, stage, weights = {}, self.bound.stage, replicate(weights, devices)
        for name, chosen in evaluation_records(self.bound.source, self.examples).items():
            if chosen:
                nats = self.bound(weights, chosen)
                values |= {f"bound_{name}": nats, f"bits_per_token_{name}": bits(nats)}
        if not self.prompts:
            return values
        ids, rows = self.bound.tokenizer(self.prompts), len(self.prompts)
        conditions = Conditioning(np.stack([ids, ids]), np.repeat([[False], [True]], rows, axis=1))
        scales = np.full((1, rows), self.guidance_config.guidance, np.float32)
        tokens = sampling.sample(
            stage,
            weights,
            conditions,
            scales,
            seed=0,
            sampler=self.sampler,
            guidance_config=self.guidance_config,
            devices=devices,
        )
        images = np.asarray(jitted.decode(stage.codec, self.codec, tokens, devices=devices))
        save_png(
            StageFolder(self.folder).samples(step),
            grid(images, 8, captions=self.prompts, scale=3),
            caption_metadata(self.prompts),
        )
        return values
