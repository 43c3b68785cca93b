"""Compares generated with real images by the measures of a protocol.

Images are read and embedded batch by batch, so that no set of images is in memory at once.
Images of a model and of a folder are evaluated by the same code.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.data.source import Items
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.eval import features, measures
from vqd_jax.eval.checks import normalize
from vqd_jax.eval.collect import Batch, Collected, FeatureSpec, batches, collect
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Statistics
from vqd_jax.eval.kernels import cmmd
from vqd_jax.eval.protocols import Protocol
from vqd_jax.eval.scores import clip_score, inception_score
from vqd_jax.models.weights.hub import local_folder

# key of the protocol's own features; the networks of other measures have the measure as their key
PRIMARY = "features"
MODEL_MEASURES = ("retrieval", "ceiling", "bound", "reconstruction")  # need a model and its data


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """Real images with their features, or published statistics of them, where `images` is None."""

    images: Items | None
    collected: Collected | Statistics

    def describe(self) -> dict[str, Any]:
        """Source and numbers of images for the result file."""
        if isinstance(self.collected, Statistics):
            return {"statistics": str(self.collected.path)}
        source = {"folder": str(self.images.path)} if isinstance(self.images, ImageFolder) else {}
        return source | {
            "images": self.collected.count,
            "distinct": len(self.images),
            "held": len(self.collected.indices),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SimilarityReport:
    """How each generated image is rated, from worst (lowest) to best (highest value).

    Attributes:
      meaning: of the values, for readers.
      values: one for each generated image.
      nearest: for each generated image, the index of the nearest real one in `images`.
      images: the real images.
    """

    meaning: str
    values: Float[np.ndarray, " n"]
    nearest: list[int]
    images: Items


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Generated images with their measures.

    Attributes:
      result: for the result file.
      kernel: kernel distance of each subset.
      similarity: None if there are no real images, only statistics.
    """

    result: dict[str, Any]
    images: Items
    prompts: Sequence[str]
    kernel: Float[np.ndarray, " subsets"]
    similarity: SimilarityReport | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A protocol with the networks of its measures, and CLIP's text tower for the CLIP score."""

    protocol: Protocol
    networks: Mapping[str, Extractor]
    embed_texts: Callable[[Sequence[str]], np.ndarray] | None = None

    def collect_generated(
        self,
        parts: Iterable[Batch],
        total: int,
        description: str,
        *,
        weights: Sequence[int] | None = None,
    ) -> dict[str, Collected]:
        """All features of `total` generated images by network; image i counts weights[i] times."""
        return self._collect(self.networks, parts, total, description, weights=weights)

    def collect_real(self, images: Items, weights: Sequence[int] | None = None) -> RealImages:
        """Real images with as many features as the protocol holds; image i counts weights[i] times
        in the moments.
        """
        primary = {PRIMARY: self.networks[PRIMARY]}
        collected = self._collect(
            primary, batches(images), len(images), "real images", self.protocol.held, weights
        )
        return RealImages(images=images, collected=collected[PRIMARY])

    def _collect(
        self,
        networks: Mapping[str, Extractor],
        parts: Iterable[Batch],
        total: int,
        description: str,
        keep: int = 0,
        weights: Sequence[int] | None = None,
    ) -> dict[str, Collected]:
        specs = {
            name: FeatureSpec(
                extract=extract,
                keep=keep,
                moments=name == PRIMARY and "frechet" in self.protocol.measures,
            )
            for name, extract in networks.items()
        }
        return collect(parts, total, specs, description=description, weights=weights)

    def reference(self, path: Path) -> RealImages:
        """The real images of a folder, or statistics in an .npz file."""
        if not path.is_file():
            return self.collect_real(ImageFolder(path))
        if "frechet" not in self.protocol.measures:
            raise UserError(
                f"statistics as in {path} only give a Fréchet distance, which the protocol "
                f"{self.protocol.name} does not have: name a folder of real images"
            )
        return RealImages(images=None, collected=Statistics.read(path))

    def compare(
        self, generated: Mapping[str, Collected], real: RealImages, texts: Sequence[str] = ()
    ) -> tuple[dict[str, float], Float[np.ndarray, " subsets"]]:
        """The measures by name, and the kernel distance of each subset. Statistics only give the
        Fréchet distance; without texts there is no CLIP score.
        """
        p, primary = self.protocol, generated[PRIMARY]
        out, kernel = {}, np.zeros(0)
        if "frechet" in p.measures:
            out |= measures.frechet_measure(p.features, primary, real.collected)
        if "kid" in p.measures and real.images is not None:
            kernel = measures.kernel_distances(
                primary, real.collected, subsets=p.subsets, subset_size=p.subset_size, seed=p.seed
            )
            name = measures.KERNEL[p.features]
            out |= {name: float(np.mean(kernel)), f"{name}_std": float(np.std(kernel))}
        if "neighbours" in p.measures and real.images is not None:
            out |= measures.neighbour_measures(primary, real.collected, p.neighbours)
        if "cmmd" in p.measures and real.images is not None:
            out["cmmd"] = cmmd(primary.features, real.collected.features)
        if "inception_score" in p.measures:
            logits = features.inception_logits(self.networks[PRIMARY], primary.features)
            mean, std = inception_score(logits, seed=p.seed)
            out |= {"inception_score": mean, "inception_score_std": std}
        if "clip_score" in p.measures and any(texts):
            embedded = self.embed_texts(texts)
            out["clip_score"] = clip_score(generated["clip_score"].features, embedded)
        return out, kernel

    def similarity(
        self, generated: Mapping[str, Collected], real: RealImages, texts: Sequence[str] = ()
    ) -> SimilarityReport | None:
        """Rates images by CLIP similarity with their texts, or else by their similarity with the
        nearest of the real images whose features are kept.
        """
        if real.images is None:
            return None
        values, nearest = measures.most_similar(
            generated[PRIMARY].features, real.collected.features
        )
        meaning = (
            f"cosine similarity of {self.protocol.features} features with the nearest real image"
        )
        if "clip_score" in generated and any(texts):
            images = normalize(generated["clip_score"].features, "images")
            values = np.einsum("nd,nd->n", images, normalize(self.embed_texts(texts), "texts"))
            meaning = "cosine similarity of CLIP embeddings of image and text"
        return SimilarityReport(
            meaning=meaning,
            values=values,
            nearest=[real.collected.indices[i] for i in nearest],
            images=real.images,
        )

    def score(self, images: Items, texts: Sequence[str], real: RealImages) -> Scored:
        """Evaluates generated images without their model."""
        generated = self.collect_generated(batches(images), len(images), "generated images")
        values, kernel = self.compare(generated, real, texts)
        return Scored(
            result={"generated": values, "images": len(images), "reference": real.describe()},
            images=images,
            prompts=texts,
            kernel=kernel,
            similarity=self.similarity(generated, real, texts),
        )


def make_evaluator(
    protocol: Protocol, *, inception: str | None = None, clip: str | None = None
) -> Evaluator:
    """Loads the networks that the protocol's measures need; `inception` and `clip` are paths or
    names of their weights, instead of the usual ones. UserError if weights are missing.
    """
    needed = {protocol.features, *protocol.measures}
    embed_texts = None
    if needed & {"clip", "clip_score"}:
        folder = local_folder(clip or protocol.clip)
        towers = features.clip(folder)
    if "clip_score" in needed:
        tokenizer = ClipTokenizer.load(folder)
        # compare and similarity embed the same texts
        embed = functools.lru_cache(maxsize=1)(lambda texts: towers.captions(tokenizer(texts)))
        embed_texts = lambda texts: embed(tuple(texts))
    extractors = {
        "inception": lambda: features.inception(inception, protocol.resizing),
        "vgg16": features.vgg16,
        "efficientnet_lite0": features.efficientnet_lite0,
        "clip": lambda: towers.images,
    }
    networks = {PRIMARY: protocol.features}
    for measure, name in (("retrieval", "efficientnet_lite0"), ("clip_score", "clip")):
        if measure in needed:
            networks[measure] = name
    return Evaluator(
        protocol=protocol,
        networks={key: extractors[name]() for key, name in networks.items()},
        embed_texts=embed_texts,
    )


def without_model(protocol: Protocol) -> Protocol:
    """The protocol without the measures that need a model. UserError if none is left."""
    left = tuple(measure for measure in protocol.measures if measure not in MODEL_MEASURES)
    if not left:
        raise UserError(f"the protocol {protocol.name} only measures models: give a --workdir")
    return dataclasses.replace(protocol, measures=left)
