"""What `vqd_jax.evaluate` measures on a loaded model: bound, reconstruction, and what pretrained networks see in its pictures."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax import build, pipeline
from vqd_jax.errors import UserError
from vqd_jax.eval import features
from vqd_jax.eval.metrics import bits, kid
from vqd_jax.eval.retrieval import retrieval
from vqd_jax.progress import bar
from vqd_jax.train import stages
from vqd_jax.train.tokens import cached_tokens

SPLITS = {"seen_cells": "train", "held_out_cells": "held_out_cells"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is measured, on how much; copied into the result.

    Attributes:
      name: of the protocol.
      images: prompts, and pictures, per split, evenly spaced over the split; each prompt is an image's first caption.
      bound_images, draws: images per split and times per image of the bound.
      subsets, subset_size: of VGG-KID; a subset has at most half of the pictures.
      seed: of the pictures' noise and the subsets.
    """

    name: str
    images: int
    bound_images: int
    draws: int
    subsets: int
    subset_size: int
    seed: int


def cache(folder: str | None, workdir: Path) -> Path:
    """Where data sets and tokens are built: `folder` if given, else the workdir's own cache, else the user's."""
    if folder:
        return Path(folder)
    own = workdir / "cache"
    return own if own.is_dir() else Path.home() / ".cache" / "vqd_jax" / "data"


class Evaluation:
    """A loaded model with its data, and the real pictures' features."""

    def __init__(self, model: pipeline.TextToImage, protocol: Protocol, cache: Path, settings: dict[str, Any]):
        if model.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")
        self.model, self.protocol, self.settings = model, protocol, settings
        source = build.source(model.config, cache)
        self.source = stages.Squares(source, build.transform(model.config, training=False))
        print(f"decoding {len(source)} real pictures and taking their features", flush=True)
        self.real = np.stack([self.source[i]["image"] for i in range(len(source))])
        self.tokens = cached_tokens(cache, self.source, model.codec_weights, model.encode)
        self.groups = [r.group or r.item for r in source.records]
        self.styles = [r.style for r in source.records]
        self.lite0, self.vgg = features.efficientnet_lite0(), features.vgg16()
        self.gallery = self.lite0(self.real)

    def codec(self) -> dict[str, float]:
        """Reconstruction of held-out pictures."""
        evaluate = stages.CodecEvaluation(stage=self.model.codec, source=self.source, transform=lambda image, rng: image,
                                          folder=None, lpips=True, examples=self.protocol.bound_images)
        return evaluate(0, self.model.codec_weights)

    def bound(self) -> dict[str, dict[str, float]]:
        """The variational bound per split, in nats and bits per token."""
        bound = stages.Bound(stage=self.model.stage, source=self.source, tokens=self.tokens, tokenizer=self.model.tokenizer,
                             draws=self.protocol.draws)
        out = {}
        for name in ("train", "held_out_cells", "held_out_items"):
            if chosen := stages.spread(stages.indices(self.source, name), self.protocol.bound_images):
                nats = bound(self.model.weights, chosen)
                out[name] = {"nats_per_token": nats, "bits_per_token": bits(nats), "images": len(chosen)}
        return out

    def pictures(self, split: str) -> tuple[dict[str, Any], list[int], np.ndarray] | None:
        """Scores of generated pictures of a split and their ceiling, and the pictures with the records they should show."""
        chosen = stages.spread(stages.indices(self.source, split), self.protocol.images)
        if len(chosen) < 4:
            return None
        started = time.perf_counter()
        made = self.generate(chosen, self.settings)
        rate = len(chosen) / (time.perf_counter() - started)
        return {"generated": self.score(made, chosen), "ceiling": self.ceiling(chosen), "images": len(chosen),
                "images_per_second": rate}, chosen, made

    def ceiling(self, chosen: list[int]) -> dict[str, float]:
        """Scores of the real pictures after encoding and decoding."""
        return self.score(self._decode(self.tokens[chosen]), chosen)

    def score(self, images: np.ndarray, chosen: list[int]) -> dict[str, float]:
        """Retrieval, style accuracy and VGG-KID of pictures of these records."""
        pick = lambda labels: [labels[i] for i in chosen]
        scores = retrieval(self.lite0(images), pick(self.groups), pick(self.styles), self.gallery, self.groups, self.styles)
        size = min(self.protocol.subset_size, len(chosen) // 2)
        mean, std = kid(self.vgg(images), self.vgg(self.real[chosen]), subsets=self.protocol.subsets, subset_size=size,
                        seed=self.protocol.seed)
        return scores | {"vgg_kid": mean, "vgg_kid_std": std}

    def generate(self, chosen: list[int], settings: dict[str, Any]) -> np.ndarray:
        """A picture for the first caption of each record."""
        prompts, out = [pipeline.literal(self.source.records[i].captions[0]) for i in chosen], []
        with bar(len(prompts), description="pictures", unit="picture") as progress:
            for images in self.model.batches(prompts, stages.ROWS, seed=self.protocol.seed, **settings):
                out.append(images)
                progress.update(len(images))
        return np.concatenate(out)

    def _decode(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self.model.decode(tokens[i:i + stages.ROWS]) for i in range(0, len(tokens), stages.ROWS)])
