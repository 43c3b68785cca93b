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
from vqd_jax.data.source import Items
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.eval import features, measures
from vqd_jax.eval.checks import normalize
from vqd_jax.eval.collect import Batch, Collected, FeatureSpec, batches, collect
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.image_sets import IMAGES, ArrayImages, FolderImages, ResizedImages, open_images
from vqd_jax.eval.kernels import Records, cmmd
from vqd_jax.eval.npz import stored_arrays
from vqd_jax.eval.protocols import MEASURES, Protocol
from vqd_jax.eval.real_images import IMAGE_MEASURES, RealImages, read_statistics, why_unused
from vqd_jax.eval.scores import clip_score, inception_score
from vqd_jax.models.weights.hub import local_folder

# key of the protocol's own features; the networks of other measures have the measure as their key
PRIMARY = "features"
# the measures that need a model and its data
MODEL_MEASURES = MEASURES[MEASURES.index("retrieval") :]


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
      kernel: kernel distance of each subset; empty if not measured.
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

    def images(self, path: Path) -> FolderImages | ArrayImages:
        """The images of a folder or .npz file. Those of a folder may differ in size if all networks
        resize each image on its own.
        """
        mixed = all(network.resize_one for network in self.networks.values())
        return open_images(path, mixed=mixed)

    def reference(self, path: Path, size: tuple[int, int] | None = None) -> RealImages:
        """The real images of a folder, or images, statistics or both in an .npz file.

        VGG16 embeds images in their own size, so if the real images have another `size` (height,
        width) than the generated ones, they are resized for it, and that is printed.
        """
        if not path.is_file():
            return self._real_images(self.images(path), size)
        stored = stored_arrays(path, (IMAGES, "mu", "sigma", "mu_s"))
        if not {IMAGES, "mu", "sigma"} & stored.keys():
            raise UserError(
                f"{path} holds neither images, as the array {IMAGES}, nor statistics, mu and sigma"
            )
        statistics = None
        if {"mu", "sigma"} & stored.keys():
            unused = why_unused(self.protocol, stored.keys())
            if not unused:
                network = self.networks[PRIMARY]
                statistics = read_statistics(path, self.protocol, network, size)
            elif IMAGES in stored:
                print(f"only the images in {path} are used, since its statistics {unused}")
            else:
                raise UserError(f"statistics as in {path} {unused}: name a folder of real images")
        if IMAGES in stored:
            real = self._real_images(ArrayImages.of(stored[IMAGES]), size)
            return dataclasses.replace(real, statistics=statistics)
        if left_out := [name for name in IMAGE_MEASURES if name in self.protocol.measures]:
            print(f"left out, since {path} has statistics but no images: {', '.join(left_out)}")
        return RealImages(statistics=statistics)

    def _real_images(
        self, images: FolderImages | ArrayImages, size: tuple[int, int] | None
    ) -> RealImages:
        if self.protocol.features == "vgg16" and size not in (None, images[0].shape[:2]):
            resized = ResizedImages(images, size)
            print(f"real images are resized for VGG16: {resized.describe()}")
            return self.collect_real(resized)
        return self.collect_real(images)

    def compare(
        self,
        generated: Mapping[str, Collected],
        real: RealImages,
        texts: Sequence[str] = (),
        records: Records | None = None,
    ) -> tuple[dict[str, Any], Float[np.ndarray, " subsets"]]:
        """The measures by name, and the kernel distance of each subset. Statistics without images
        only give the Fréchet distance; without texts there is no CLIP score.

        `records` name the record of each generated image and of each real one whose features are
        kept; kernel distances leave out the pairs of one record.
        """
        p, primary, collected = self.protocol, generated[PRIMARY], real.collected
        out: dict[str, Any] = {}
        subsets = np.zeros(0)
        if "frechet" in p.measures:
            out |= measures.frechet_measure(p.features, primary, real.statistics or collected)
        if "kid" in p.measures and collected:
            kernel = measures.kernel_distance(
                primary,
                collected,
                subsets=p.subsets,
                subset_size=p.subset_size,
                seed=p.seed,
                records=records,
            )
            subsets, out = kernel.values, out | kernel.measures(measures.KERNEL[p.features])
        if "neighbours" in p.measures and collected:
            out |= measures.neighbour_measures(
                primary, collected, p.neighbours, closed=p.closed_balls
            )
        if "cmmd" in p.measures and collected:
            out["cmmd"] = cmmd(primary.features, collected.features)
        if "inception_score" in p.measures:
            logits = features.inception_logits(self.networks[PRIMARY], primary.features)
            mean, std = inception_score(logits, seed=p.seed)
            out |= {"inception_score": mean, "inception_score_std": std}
        if "clip_score" in p.measures and any(texts):
            embedded = self.embed_texts(texts)
            out["clip_score"] = clip_score(generated["clip_score"].features, embedded)
        return out, subsets

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
        result: dict[str, Any] = {"images": len(images), "reference": real.describe()}
        records = None
        if real.collected:
            records, result["copies"] = measures.copies(generated[PRIMARY], real.collected)
            if result["copies"]:
                print(
                    f"{result['copies']:,} of {len(images):,} images are copies of real ones; "
                    "kernel distances leave out the pairs of an image with its copy"
                )
        values, kernel = self.compare(generated, real, texts, records)
        return Scored(
            result={"generated": values} | result,
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
