"""Evaluation of a loaded model by a protocol: generated images of each part, variational bound and
reconstruction.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vqd_jax.config import build, sources
from vqd_jax.core.errors import UserError
from vqd_jax.data.batches import Resized, evaluation_records, indices, spread
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.data.source import Items
from vqd_jax.data.splits import CELLS, ITEMS
from vqd_jax.data.token_cache import cached_tokens, encode_records
from vqd_jax.eval import held_out, measures
from vqd_jax.eval.collect import (
    BATCH_SIZE,
    Batch,
    Collected,
    FeatureSpec,
    batches,
    collect,
    evenly_spaced,
)
from vqd_jax.eval.evaluator import Evaluator, Scored, SimilarityReport
from vqd_jax.eval.generate import generate
from vqd_jax.eval.kernels import Records
from vqd_jax.eval.protocols import Protocol
from vqd_jax.eval.real_images import RealImages
from vqd_jax.eval.retrieval import retrieve
from vqd_jax.inference import pipeline
from vqd_jax.inference.prompts import escape_prompt
from vqd_jax.models.lpips import SMALLEST
from vqd_jax.runtime.workdir import Workdir

MIN_IMAGES = 4  # a part with fewer images is left out

Tokens = Int[np.ndarray, "records n"] | dict[int, Int[np.ndarray, " n"]]


def cache_folder(folder: str | None, workdir: Path) -> Path:
    """The folder for data sets and tokens: `folder` if given, else the workdir's cache if it has
    one, else the user's cache.
    """
    if folder:
        return Path(folder)
    cache = Workdir(workdir).cache
    return cache if cache.is_dir() else Path.home() / ".cache" / "vqd_jax" / "data"


@dataclasses.dataclass(frozen=True)
class RecordImages:
    """The images of some records of a data set."""

    source: Resized
    records: Sequence[int]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        return self.source[self.records[i]]["image"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A loaded model and its data set, which is opened on first use.

    Attributes:
      cache: folder for data sets and tokens.
      settings: keywords of `TextToImage` for sampling.
      real: real images to compare with, instead of the protocol's.
    """

    model: pipeline.TextToImage
    evaluator: Evaluator
    cache: Path
    settings: dict[str, Any]
    real: RealImages | None = None

    def __post_init__(self):
        if self.model.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")

    @property
    def protocol(self) -> Protocol:
        return self.evaluator.protocol

    @functools.cached_property
    def source(self) -> Resized:
        config = self.model.config
        return Resized(sources.source(config, self.cache), build.transform(config, training=False))

    def reconstruction(self) -> dict[str, Any]:
        """Quality of the codec on held-out images, with LPIPS where they are large enough, and 95 %
        intervals.
        """
        size = self.model.config.data.image_size
        evaluate = held_out.CodecEvaluation(
            stage=self.model.codec,
            source=self.source,
            transform=lambda image, rng: image,
            folder=None,
            lpips=tuple(net for net, least in SMALLEST.items() if size >= least),
            examples=self.protocol.bound_images,
            intervals=True,
            splits=tuple(map(self.protocol.half_of, (CELLS, ITEMS))),
        )
        return evaluate(0, self.model.codec_weights)

    def bound(self) -> dict[str, dict[str, Any]]:
        """The variational bound of each split, in nats and bits per token, with 95 % intervals."""
        splits = evaluation_records(self.source, self.protocol.bound_images)
        splits = {name: records for name, records in splits.items() if records}
        bound = held_out.Bound(
            stage=self.model.stage,
            source=self.source,
            tokenizer=self.model.tokenizer,
            draws=self.protocol.draws,
            tokens=self.tokens(sum(splits.values(), [])),
        )
        budget = self.protocol.bound_images * self.protocol.draws
        return {
            name: bound.measures(self.model.weights, records, budget, f"bound of {name}")
            for name, records in splits.items()
        }

    def evaluate_split(self, split: str, folder: Path, batch: int) -> Scored | None:
        """Generates images for the prompts of a split into `folder`, `batch` at a time on each
        device, and evaluates them. None if there are too few.
        """
        p = self.protocol
        requested = self.prompts(split)
        if len(requested) < MIN_IMAGES:
            if not p.repeat:
                return None
            raise UserError(
                f"the protocol {p.name} needs at least {MIN_IMAGES} images with prompts in the "
                f"split {split}, got {len(requested)}"
            )
        if not self.real and p.reference != "own":
            _ = self.reference_records  # UserError now, before hours of sampling, if there are none
        records, prompts = [i for i, _ in requested], [text for _, text in requested]
        texts = prompts if self.model.config.condition.kind == "text" else []
        images, rate = self.draw(folder, prompts, batch)
        counts = collections.Counter(records)
        pairs = None
        if self.real:
            real = self.real
        elif p.reference != "own":
            real = self.reference_images
        else:
            real = self.evaluator.collect_real(
                RecordImages(self.source, [*counts]), [*counts.values()]
            )
            pairs = _pairs(records, [*counts], real)
        generated = self.evaluator.collect_generated(
            batches(images), len(images), "generated images"
        )
        values, kernel = self.evaluator.compare(generated, real, texts, pairs)
        result = {"generated": values | self.retrieval(generated, records)}
        if "ceiling" in p.measures:
            result["ceiling"] = self.ceiling([*counts], real, [*counts.values()])
        result |= {
            "images": len(images),
            "images_per_second": rate,
            "reference": real.describe(),
        }
        return Scored(
            result=result,
            images=images,
            prompts=prompts,
            kernel=kernel,
            similarity=self.similarity(generated, real, records, texts),
        )

    def draw(self, folder: Path, prompts: Sequence[str], batch: int) -> tuple[ImageFolder, float]:
        """Images of the prompts, see `generate`."""
        return generate(
            self.model,
            folder,
            prompts,
            seed=self.protocol.seed,
            batch=batch,
            settings=self.settings,
            protocol=self.protocol.name,
        )

    def prompts(self, split: str) -> list[tuple[int, str]]:
        """(record, prompt) of each image to generate for a split; record -1 if the model needs no
        data set.
        """
        p, kind = self.protocol, self.model.config.condition.kind
        by_file: dict[str | None, list[int]] = {}
        if p.reference != "own" and (kind == "none" or kind == "class" and p.classes == "even"):
            by_file = {None: [-1]}
        else:
            for i in indices(self.source, split):
                by_file.setdefault(self.source.files[i], []).append(i)
        groups = [*by_file.values()]
        if p.repeat and 0 < len(groups) < p.images:
            chosen = [i % len(groups) for i in range(p.images)]
        else:
            chosen = evenly_spaced(len(groups), p.images)
        return [
            (groups[i][0], self._prompt(kind, number, groups[i])) for number, i in enumerate(chosen)
        ]

    def _prompt(self, kind: str, number: int, records: list[int]) -> str:
        """Prompt of image `number`, from the records that share its real image."""
        p = self.protocol
        if kind == "none":
            return ""
        if kind == "class" and p.classes == "even":
            return str(number % self.model.config.condition.classes)
        if kind == "class":
            return str(self.source.records[records[0]].label)
        captions = [caption for i in records for caption in self.source.records[i].captions]
        if p.captions == "first":
            return escape_prompt(captions[0])
        random = np.random.default_rng((p.seed, number))
        return escape_prompt(captions[random.integers(len(captions))])

    @functools.cached_property
    def reference_records(self) -> list[int]:
        """The first record of each image in the protocol's reference split."""
        firsts = {
            self.source.files[i]: i for i in reversed(indices(self.source, self.protocol.reference))
        }
        if not firsts:
            raise UserError(
                f"the data set has no images in the split {self.protocol.reference}: name others "
                "with --reference"
            )
        return sorted(firsts.values())

    @functools.cached_property
    def reference_images(self) -> RealImages:
        return self.evaluator.collect_real(RecordImages(self.source, self.reference_records))

    def ceiling(
        self,
        records: list[int],
        real: RealImages | None = None,
        weights: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """The measures of encoded and decoded real images, compared with `real` or, by default,
        with themselves: no model of the tokens can do better.
        """
        tokens = self.tokens(records)
        own = real is None or self.real is None and self.protocol.reference == "own"
        real = real or self.evaluator.collect_real(RecordImages(self.source, records))

        decoded = self.decode([tokens[i] for i in records])
        generated = self.evaluator.collect_generated(
            decoded, len(records), "decoded real images", weights=weights
        )
        pairs = _pairs(records, records, real) if own else None
        values, _ = self.evaluator.compare(generated, real, records=pairs)
        return values | self.retrieval(generated, records)

    def score(self, images: Items, records: list[int]) -> dict[str, Any]:
        """The measures of images generated for these records, compared with the records' own."""
        generated = self.evaluator.collect_generated(
            batches(images), len(images), "generated images"
        )
        real = self.evaluator.collect_real(RecordImages(self.source, records))
        pairs = _pairs(records, records, real)
        values, _ = self.evaluator.compare(generated, real, records=pairs)
        return values | self.retrieval(generated, records)

    def half_of(self, split: str) -> list[int]:
        """At most the protocol's number of records of its half of a held-out split."""
        return spread(indices(self.source, self.protocol.half_of(split)), self.protocol.images)

    def decode(self, tokens: Sequence[Int[np.ndarray, " n"]] | Tokens) -> Iterator[Batch]:
        """The images of tokens, in batches."""
        for first in range(0, len(tokens), BATCH_SIZE):
            yield self.model.decode(np.stack(tokens[first : first + BATCH_SIZE]))

    def decoded(self, records: list[int]) -> UInt8[np.ndarray, "b H W 3"]:
        """The codec's reconstructions of records."""
        tokens = self.tokens(records)
        return np.concatenate([*self.decode([tokens[i] for i in records])])

    def tokens(self, records: list[int]) -> Tokens:
        """The tokens of at least these records, by index; all, where training caches them."""
        if build.encodes_online(self.model.config):
            return encode_records(self.source, records, self.model.encode)
        return self._cached_tokens

    @functools.cached_property
    def _cached_tokens(self) -> Int[np.ndarray, "records n"]:
        return cached_tokens(self.cache, self.source, self.model.codec_weights, self.model.encode)

    @functools.cached_property
    def gallery(self) -> tuple[Collected, list[str], list[str]]:
        """Retrieval features, groups and styles of all original images."""
        records = [self.source.records[i] for i in self.originals]
        features = self.retrieval_features(
            RecordImages(self.source, self.originals), "gallery of real images"
        )
        return features, [r.thing for r in records], [r.style for r in records]

    @functools.cached_property
    def originals(self) -> list[int]:
        """The records that are not made of others."""
        return [i for i, record in enumerate(self.source.records) if record.part == "original"]

    def retrieval_features(self, images: Items, description: str) -> Collected:
        """The features by which images are retrieved."""
        spec = FeatureSpec(extract=self.evaluator.networks["retrieval"])
        return collect(batches(images), len(images), {"": spec}, description=description)[""]

    def retrieval(self, generated: Mapping[str, Collected], records: list[int]) -> dict[str, Any]:
        """Whether generated images retrieve what their records show; {} unless measured."""
        if "retrieval" not in generated:
            return {}
        gallery, groups, styles = self.gallery
        chosen = [self.source.records[i] for i in records]
        found = retrieve(
            generated["retrieval"].features,
            [record.thing for record in chosen],
            [record.style for record in chosen],
            gallery.features,
            groups,
            styles,
        )
        return found.measures()

    def similarity(
        self,
        generated: Mapping[str, Collected],
        real: RealImages,
        records: list[int],
        texts: Sequence[str],
    ) -> SimilarityReport | None:
        """Rates images by the real images of their prompts' groups and styles, if retrieval is
        measured, or else as `Evaluator.similarity`.
        """
        if "retrieval" not in generated:
            return self.evaluator.similarity(generated, real, texts)
        gallery, groups, styles = self.gallery
        labels = np.array([f"{style}\n{group}" for group, style in zip(groups, styles)])
        chosen = [self.source.records[i] for i in records]
        own = np.array([f"{record.style}\n{record.thing}" for record in chosen])
        values, nearest = measures.most_similar(
            generated["retrieval"].features, gallery.features, (own, labels)
        )
        return SimilarityReport(
            meaning="cosine similarity of efficientnet_lite0 features with the nearest real image "
            "that fits the prompt",
            values=values,
            nearest=nearest.tolist(),
            images=RecordImages(self.source, self.originals),
        )


def _pairs(generated: Sequence[int], real: Sequence[int], images: RealImages) -> Records:
    """The records of generated images, and those of the real images whose features are kept."""
    return generated, [real[i] for i in images.collected.indices]
