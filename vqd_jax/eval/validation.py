"""Measures by which training chooses its best checkpoint.

For a codec they are those of its reconstructions. For a model over tokens they are measured on
images that it draws: in many epochs of few images, held-out bits get worse while the drawn images
still get better.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from vqd_jax.core.shapes import Params
from vqd_jax.data.batches import ROWS, Resized, indices, spread
from vqd_jax.data.source import Record, Source
from vqd_jax.data.splits import CELLS, ITEMS, SPLITS, VALIDATION
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.eval.collect import FeatureSpec, batches, collect
from vqd_jax.eval.evaluation import RecordImages
from vqd_jax.eval.features import Extractor, efficientnet_lite0
from vqd_jax.eval.reconstruction import WINDOW
from vqd_jax.eval.retrieval import retrieve
from vqd_jax.inference.prompts import conditioning, escape_prompt
from vqd_jax.runtime.devices import all_devices, replicate
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.token_stage import AnySampler, TokenStage

CODEC = {"psnr": "higher", "ssim": "higher", "lpips": "lower"}
DRAWN = {"retrieval@1": "higher", "retrieval@5": "higher", "style_accuracy": "higher"}
BETTER = CODEC | DRAWN  # measure -> which values of it are better


def is_better(measure: str, value: float, best: float | None) -> bool:
    """Whether a value of the measure is better than the best one so far, None if there is none."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best if BETTER[measure] == "higher" else value < best


def codec_measures(held_out: ConfigDict, size: int) -> list[str]:
    """Those of CODEC that the evaluation of images of that size returns."""
    if not held_out.examples:
        return []
    left_out = {"ssim": size < WINDOW, "lpips": not held_out.lpips}
    return [name for name in CODEC if not left_out.get(name)]


def validation_records(source: Source, count: int) -> list[int]:
    """At most `count` records of the validation half of the held-out pairs, or of the held-out
    items of a source without such pairs.
    """
    pairs, items = (indices(source, f"{split}/{VALIDATION}") for split in (CELLS, ITEMS))
    return spread(pairs or items, count)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DrawnRetrieval:
    """Draws an image for the first caption of each of some records, with the same noise every time,
    and retrieves it among all original images (`eval.retrieval`). Collective.

    Attributes:
      codec: the weights of the codec.
      images: how many are drawn, at most one for each of `validation_records`.
    """

    stage: TokenStage
    source: Resized
    codec: Params
    tokenizer: Tokenizer
    sampler: AnySampler
    guidance_config: GuidanceConfig
    images: int

    def __call__(self, weights: Params) -> dict[str, float]:
        """The measures DRAWN, and "chance@k"; {} if there are no records."""
        chosen = validation_records(self.source, self.images)
        if not chosen:
            return {}
        records = [self.source.records[i] for i in chosen]
        features = self._features(weights, [escape_prompt(r.captions[0]) for r in records])
        gallery, real = self._gallery
        found = retrieve(features, *_labels(records), gallery, *_labels(real)).measures()
        return {name: found[name] for name in (*DRAWN, "chance@1", "chance@5")}

    def _features(self, weights: Params, prompts: list[str]) -> Float[np.ndarray, "n d"]:
        """The features of an image for each prompt."""
        rows = math.ceil(len(prompts) / math.ceil(len(prompts) / ROWS))
        devices, features = all_devices(), []
        weights = replicate(weights, devices)
        for first in range(0, len(prompts), rows):
            part = prompts[first : first + rows]
            padded = part + part[-1:] * (rows - len(part))
            conditions, scales = conditioning(
                "text", self.tokenizer, padded, "", self.guidance_config
            )
            tokens = sampling.sample(
                self.stage,
                weights,
                conditions,
                scales,
                seed=0,
                first=first,
                sampler=self.sampler,
                guidance_config=self.guidance_config,
                devices=devices,
            )
            images = jitted.decode(self.stage.codec, self.codec, tokens, devices=devices)
            features.append(self._extract(np.asarray(images)[: len(part)]))
        return np.concatenate(features)

    @functools.cached_property
    def _extract(self) -> Extractor:
        return efficientnet_lite0()

    @functools.cached_property
    def _gallery(self) -> tuple[Float[np.ndarray, "i d"], list[Record]]:
        """The features of all real images, and their records."""
        chosen = indices(self.source, *SPLITS)
        images, spec = RecordImages(self.source, chosen), FeatureSpec(extract=self._extract)
        found = collect(
            batches(images), len(images), {"gallery": spec}, description="gallery of real images"
        )
        return found["gallery"].features, [self.source.records[i] for i in chosen]


def _labels(records: list[Record]) -> tuple[list[str], list[str]]:
    """Groups and styles."""
    return [record.thing for record in records], [record.style for record in records]
