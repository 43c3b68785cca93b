"""What `vqd evaluate` measures of a loaded model: its pictures of each part of the protocol, bound,
reconstruction.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.data.batches import Resized, evaluation_records, indices
from vqd_jax.data.source import Items
from vqd_jax.data.token_cache import cached_tokens, encode_records
from vqd_jax.eval import held_out, measures
from vqd_jax.eval.collect import (
    ROWS,
    Batch,
    Collected,
    FeatureSpec,
    batches,
    collect,
    evenly_spaced,
)
from vqd_jax.eval.generate import generate
from vqd_jax.eval.judge import Evaluator, RealImages, Scored, SimilarityReport
from vqd_jax.eval.metrics import bits
from vqd_jax.eval.retrieval import retrieval
from vqd_jax.inference import pipeline
from vqd_jax.inference.prompts import escape_prompt
from vqd_jax.models.lpips import SMALLEST
from vqd_jax.runtime.workdir import Workdir

SPLITS = ("train", "held_out_cells", "held_out_items")
LEAST = 4  # pictures of a part; one with fewer is left out


def cache(folder: str | None, workdir: Path) -> Path:
    """Where data sets and tokens are built: `folder` if given, else the workdir's own cache, else
    the user's.
    """
    if folder:
        return Path(folder)
    own = Workdir(workdir).cache
    return own if own.is_dir() else Path.home() / ".cache" / "vqd_jax" / "data"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The images of some records."""

    source: Resized
    records: Sequence[int]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.source[self.records[i]]["image"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A loaded model with its data set, which is opened when it is needed; `real` takes the place
    of the protocol's real pictures.
    """

    model: pipeline.TextToImage
    judge: Evaluator
    cache: Path
    settings: dict[str, Any]
    real: RealImages | None = None

    def __post_init__(self):
        if self.model.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")

    @property
    def protocol(self):
        return self.judge.protocol

    @functools.cached_property
    def source(self) -> Resized:
        config = self.model.config
        return Resized(build.source(config, self.cache), build.transform(config, training=False))

    def reconstruction(self) -> dict[str, float]:
        """Of held-out pictures, with both networks of LPIPS if the pictures are large enough for
        them.
        """
        nets = tuple(
            net for net, least in SMALLEST.items() if self.model.config.data.image_size >= least
        )
        evaluate = held_out.CodecEvaluation(
            stage=self.model.codec,
            source=self.source,
            transform=lambda image, rng: image,
            folder=None,
            lpips=nets,
            examples=self.protocol.bound_images,
        )
        return evaluate(0, self.model.codec_weights)

    def bound(self) -> dict[str, dict[str, float]]:
        """The variational bound per split, in nats and bits per token."""
        records = {
            name: chosen
            for name, chosen in evaluation_records(self.source, self.protocol.bound_images).items()
            if chosen
        }
        bound = held_out.Bound(
            stage=self.model.stage,
            source=self.source,
            tokenizer=self.model.tokenizer,
            draws=self.protocol.draws,
            tokens=self.tokens(sum(records.values(), [])),
        )
        nats = {name: bound(self.model.weights, chosen) for name, chosen in records.items()}
        return {
            name: {
                "nats_per_token": nats[name],
                "bits_per_token": bits(nats[name]),
                "images": len(chosen),
            }
            for name, chosen in records.items()
        }

    def part(self, split: str, folder: Path, batch: int) -> Scored | None:
        """The pictures for the prompts of a split, made in `folder`, `batch` at a time on each
        device; None where it has too few.
        """
        asked = self.asked(split)
        p = self.protocol
        if len(asked) < LEAST and p.repeat:
            raise UserError(
                f"the protocol {p.name} needs at least {LEAST} pictures for prompts of the split "
                f"{split}, got {len(asked)}"
            )
        if len(asked) < LEAST:
            return None
        chosen, prompts = [i for i, _ in asked], [text for _, text in asked]
        texts = prompts if self.model.config.condition.kind == "text" else []
        others = (
            [] if self.real or p.reference == "own" else self.compared
        )  # which are missed before anything is drawn
        pictures, rate = generate(
            self.model,
            folder,
            prompts,
            seed=p.seed,
            batch=batch,
            settings=self.settings,
            protocol=p.name,
        )
        times = collections.Counter(chosen)
        real = self.real or (
            self.split
            if others
            else self.judge.real(Chosen(self.source, [*times]), [*times.values()])
        )
        made = self.judge.see(batches(pictures), len(pictures), "generated pictures")
        numbers, kernel = self.judge.compare(made, real, texts)
        result = {"generated": numbers | self.found(made, chosen)}
        if "ceiling" in p.measures:
            result["ceiling"] = self.ceiling([*times], real, [*times.values()])
        result |= {
            "images": len(pictures),
            "images_per_second": rate,
            "reference": real.described(),
        }
        return Scored(
            result=result,
            pictures=pictures,
            texts=prompts,
            kernel=kernel,
            likeness=self.likeness(made, real, chosen, texts),
        )

    def asked(self, split: str) -> list[tuple[int, str]]:
        """(record, prompt) of each picture of a part."""
        p, kind, groups = self.protocol, self.model.config.condition.kind, {}
        if p.reference != "own" and (kind == "none" or kind == "class" and p.classes == "even"):
            groups = {None: [-1]}  # which needs no data set
        else:
            for i in indices(self.source, split):
                groups.setdefault(self.source.files[i], []).append(i)
        own = [*groups.values()]
        own = [
            own[i % len(own)]
            for i in (
                range(p.images)
                if p.repeat and 0 < len(own) < p.images
                else evenly_spaced(len(own), p.images)
            )
        ]
        return [
            (records[0], self._prompt(kind, number, records)) for number, records in enumerate(own)
        ]

    def _prompt(self, kind: str, number: int, records: list[int]) -> str:
        p = self.protocol
        if kind == "none":
            return ""
        if kind == "class":
            label = (
                number % self.model.config.condition.classes
                if p.classes == "even"
                else self.source.records[records[0]].label
            )
            return str(label)
        captions = [caption for i in records for caption in self.source.records[i].captions]
        drawn = (
            0
            if p.captions == "first"
            else np.random.default_rng((p.seed, number)).integers(len(captions))
        )
        return escape_prompt(captions[drawn])

    @functools.cached_property
    def compared(self) -> list[int]:
        """A record of each picture of the split that the protocol compares with."""
        firsts = {
            self.source.files[i]: i for i in reversed(indices(self.source, self.protocol.reference))
        }
        if not firsts:
            raise UserError(
                f"the data set has no pictures in the split {self.protocol.reference}: name "
                "others with --reference"
            )
        return sorted(firsts.values())

    @functools.cached_property
    def split(self) -> RealImages:
        return self.judge.real(Chosen(self.source, self.compared))

    def ceiling(
        self, chosen: list[int], real: RealImages | None = None, times: Sequence[int] | None = None
    ) -> dict[str, float]:
        """The measures of the records' pictures after encoding and decoding, beside their own if no
        others are given.
        """
        tokens, real = self.tokens(chosen), real or self.judge.real(Chosen(self.source, chosen))

        def decoded() -> Iterator[Batch]:
            for first in range(0, len(chosen), ROWS):
                yield self.model.decode(np.stack([tokens[i] for i in chosen[first : first + ROWS]]))

        made = self.judge.see(decoded(), len(chosen), "decoded real pictures", times=times)
        return self.judge.compare(made, real)[0] | self.found(made, chosen)

    def score(self, images: Items, chosen: list[int]) -> dict[str, float]:
        """The measures of pictures of these records beside the records' own."""
        made = self.judge.see(batches(images), len(images), "generated pictures")
        return self.judge.compare(made, self.judge.real(Chosen(self.source, chosen)))[
            0
        ] | self.found(made, chosen)

    def tokens(self, chosen: list[int]) -> Any:
        """Of these records by number; all are kept where training keeps them."""
        return (
            encode_records(self.source, chosen, self.model.encode)
            if build.encodes_online(self.model.config)
            else self._tokens
        )

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return cached_tokens(self.cache, self.source, self.model.codec_weights, self.model.encode)

    @functools.cached_property
    def gallery(self) -> tuple[Collected, list[str], list[str]]:
        """Of all real pictures what the retrieval sees, their groups and styles."""
        everything, records = Chosen(self.source, range(len(self.source))), self.source.records
        wanted = {"gallery": FeatureSpec(extract=self.judge.networks["retrieval"])}
        seen = collect(
            batches(everything), len(everything), wanted, description="gallery of real pictures"
        )["gallery"]
        return seen, [r.group or r.item for r in records], [r.style for r in records]

    def found(self, made: dict[str, Collected], chosen: list[int]) -> dict[str, float]:
        """Whether what the records show is found in the gallery by their pictures."""
        if "retrieval" not in made:
            return {}
        gallery, groups, styles = self.gallery
        of = lambda labels: [labels[i] for i in chosen]
        return retrieval(
            made["retrieval"].features, of(groups), of(styles), gallery.features, groups, styles
        )

    def likeness(
        self, made: dict[str, Collected], real: RealImages, chosen: list[int], texts: Sequence[str]
    ) -> SimilarityReport | None:
        """By the real pictures of what the prompt asks for, where they are known."""
        if "retrieval" not in made:
            return self.judge.likeness(made, real, texts)
        gallery, groups, styles = self.gallery
        labels = np.array([f"{style}\n{group}" for group, style in zip(groups, styles)])
        value, place = measures.nearest_distance(
            made["retrieval"].features, gallery.features, (labels[chosen], labels)
        )
        return SimilarityReport(
            meaning="cosine similarity of efficientnet_lite0 features with the nearest real "
            "picture of what was asked for",
            value=value,
            closest=place.tolist(),
            pictures=Chosen(self.source, range(len(self.source))),
        )
