"""Generated pictures beside real ones, as a protocol says: read and seen by its networks a batch at
a time, then compared.

No set of pictures is in memory as a whole. The same code judges what a model draws and what lies in
a folder.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.data.source import Items
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.eval import features, measures
from vqd_jax.eval.checks import unit
from vqd_jax.eval.collect import Batch, Collected, FeatureSpec, batches, collect
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.kernels import cmmd
from vqd_jax.eval.measures import Statistics
from vqd_jax.eval.protocols import Protocol
from vqd_jax.eval.scores import clip_score, inception_score
from vqd_jax.models.weights.hub import local_folder

# what the protocol's own features are called among the networks'; the others are called after their
# measure
SEEN = "features"
OF_MODELS = (
    "retrieval",
    "ceiling",
    "bound",
    "reconstruction",
)  # measures that need a model and its data set


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """Real pictures, None where only statistics are known of them, and what was gathered of them."""

    pictures: Items | None
    gathered: Collected | Statistics

    def described(self) -> dict[str, Any]:
        if isinstance(self.gathered, Statistics):
            return {"statistics": str(self.gathered.path)}
        where = (
            {"folder": str(self.pictures.path)} if isinstance(self.pictures, ImageFolder) else {}
        )
        return where | {
            "images": self.gathered.count,
            "distinct": len(self.pictures),
            "held": len(self.gathered.held),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SimilarityReport:
    """What makes a generated picture one of the best or the worst: `value` of each, which means
    `meaning`, and its closest real one.
    """

    meaning: str
    value: np.ndarray
    closest: list[int]  # numbers of `pictures`
    pictures: Items


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The measures of generated pictures; the kernel distance of each subset; None where there are
    no real pictures to be like.
    """

    result: dict[str, Any]
    pictures: Items
    texts: Sequence[str]
    kernel: np.ndarray
    likeness: SimilarityReport | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A protocol, the networks that its measures need, and what embeds texts for the CLIP score."""

    protocol: Protocol
    networks: Mapping[str, Extractor]
    captions: Callable[[Sequence[str]], np.ndarray] | None = None

    def see(
        self,
        parts: Iterable[Batch],
        total: int,
        description: str,
        *,
        real: bool = False,
        times: Sequence[int] | None = None,
    ) -> dict[str, Collected]:
        """What each network is to keep of pictures; of real ones as many of the protocol's own
        features as it holds.
        """
        wanted = {
            name: FeatureSpec(
                extract=extract,
                held=self.protocol.held if real else 0,
                moments=name == SEEN and "frechet" in self.protocol.measures,
            )
            for name, extract in self.networks.items()
            if name == SEEN or not real
        }
        return collect(parts, total, wanted, description=description, times=times)

    def real(self, pictures: Items, times: Sequence[int] | None = None) -> RealImages:
        """Real pictures, each of which counts as often as `times` says."""
        seen = self.see(batches(pictures), len(pictures), "real pictures", real=True, times=times)
        return RealImages(pictures=pictures, gathered=seen[SEEN])

    def reference(self, path: Path) -> RealImages:
        """The real pictures of a folder, or statistics in a file."""
        if path.is_file() and "frechet" not in self.protocol.measures:
            raise UserError(
                f"from statistics as in {path} only a Fréchet distance comes, and the protocol "
                f"{self.protocol.name} has none"
            )
        if path.is_file():
            return RealImages(pictures=None, gathered=Statistics.read(path))
        return self.real(ImageFolder(path))

    def compare(
        self, made: Mapping[str, Collected], real: RealImages, texts: Sequence[str] = ()
    ) -> tuple[dict[str, float], np.ndarray]:
        """The measures by name, and the kernel distance of each subset. Against statistics there is
        only the Fréchet distance, without texts no CLIP score.
        """
        p, own, out, kernel = self.protocol, made[SEEN], {}, np.zeros(0)
        if "frechet" in p.measures:
            out |= measures.frechet(p.features, own, real.gathered)
        if "kid" in p.measures and real.pictures is not None:
            kernel = measures.kernel(
                own, real.gathered, subsets=p.subsets, subset_size=p.subset_size, seed=p.seed
            )
            name = measures.KERNEL[p.features]
            out |= {name: float(np.mean(kernel)), f"{name}_std": float(np.std(kernel))}
        if "neighbours" in p.measures and real.pictures is not None:
            out |= measures.knn(own, real.gathered, p.neighbours)
        if "cmmd" in p.measures and real.pictures is not None:
            out["cmmd"] = cmmd(own.features, real.gathered.features)
        if "inception_score" in p.measures:
            logits = features.inception_logits(self.networks[SEEN], own.features)
            out["inception_score"], out["inception_score_std"] = inception_score(
                logits, seed=p.seed
            )
        if "clip_score" in p.measures and any(texts):
            out["clip_score"] = clip_score(made["clip_score"].features, self.captions(texts))
        return out, kernel

    def likeness(
        self, made: Mapping[str, Collected], real: RealImages, texts: Sequence[str] = ()
    ) -> SimilarityReport | None:
        """By CLIP and the text, else by the nearest of the real pictures whose features are held."""
        if real.pictures is None:
            return None
        value, place = measures.nearest_distance(made[SEEN].features, real.gathered.features)
        meaning = (
            f"cosine similarity of {self.protocol.features} features with the nearest real picture"
        )
        if "clip_score" in made and any(texts):
            images, words = (
                unit(made["clip_score"].features, "images"),
                unit(self.captions(texts), "texts"),
            )
            value, meaning = (
                np.einsum("nd,nd->n", images, words),
                "cosine similarity of CLIP's embeddings of picture and text",
            )
        return SimilarityReport(
            meaning=meaning,
            value=value,
            closest=[real.gathered.held[i] for i in place],
            pictures=real.pictures,
        )

    def score(self, pictures: Items, texts: Sequence[str], real: RealImages) -> Scored:
        """Of pictures without a model."""
        made = self.see(batches(pictures), len(pictures), "generated pictures")
        numbers, kernel = self.compare(made, real, texts)
        result = {"generated": numbers, "images": len(pictures), "reference": real.described()}
        return Scored(
            result=result,
            pictures=pictures,
            texts=texts,
            kernel=kernel,
            likeness=self.likeness(made, real, texts),
        )


def make_evaluator(
    protocol: Protocol, *, inception: str | None = None, clip: str | None = None
) -> Evaluator:
    """With the networks that the protocol's measures need; `inception` and `clip` say where their
    weights are, if not where others put them. UserError if there are none.
    """
    needed, captions = {protocol.features, *protocol.measures}, None
    if needed & {"clip", "clip_score"}:
        folder = local_folder(clip or protocol.clip)
        towers, tokenizer = (
            features.clip(folder),
            ClipTokenizer.load(folder) if "clip_score" in needed else None,
        )
        embed = functools.lru_cache(maxsize=1)(
            lambda texts: towers.captions(tokenizer(texts))
        )  # asked for the same ones twice
        captions = lambda texts: embed(tuple(texts))
    make = {
        "inception": lambda: features.inception(inception, protocol.resizing),
        "vgg16": features.vgg16,
        "efficientnet_lite0": features.efficientnet_lite0,
        "clip": lambda: towers.images,
    }
    more = {"retrieval": "efficientnet_lite0", "clip_score": "clip"}
    networks = {SEEN: protocol.features} | {
        measure: name for measure, name in more.items() if measure in needed
    }
    return Evaluator(
        protocol=protocol,
        networks={name: make[network]() for name, network in networks.items()},
        captions=captions,
    )


def without_model(protocol: Protocol) -> Protocol:
    """What of the protocol can be measured in folders."""
    left = tuple(measure for measure in protocol.measures if measure not in OF_MODELS)
    if not left:
        raise UserError(f"the protocol {protocol.name} only measures models")
    return dataclasses.replace(protocol, measures=left)
