"""Evaluation protocols by name: prompts, number of images, real images, features and measures.

Neither paper states all of these, so its figures cannot be reproduced exactly. A result of ours
therefore contains its whole protocol.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.splits import CELLS, HALVES, ITEMS, TRAIN, VALIDATION

FEATURES = ("inception", "vgg16", "efficientnet_lite0", "clip")
RESIZING = ("pytorch-fid", "tf-legacy", "clean")
MEASURES = (
    "frechet",
    "kid",
    "neighbours",
    "inception_score",
    "clip_score",
    "cmmd",
    "retrieval",
    "ceiling",
    "bound",
    "reconstruction",
    "colours",
    "free_colours",
    "two_things",
    "synonyms",
    "masked_bits",
    "repair",
)
TEST, ALL = ITEMS, TRAIN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is measured, and on how many images; copied into the result file.

    Attributes:
      name: of the protocol.
      parts: name in the result -> split of the data set whose images give the prompts.
      images: generated images of each part. Of a split with more images, evenly spaced ones give
        the prompts. A split with fewer is repeated if `repeat` is set, and otherwise gives one
        prompt per image.
      captions: the "first" caption of each image, or a "random" one, drawn by the seed and the
        index of the prompt.
      classes: class models draw all classes "even"ly in turn, or at their "frequency": those of
        the images.
      reference: the real images: "own" for those of the prompts, each counted once per prompt, or
        the name of a split for all of its images.
      held: features of real images kept for measures that need more than mean and covariance,
        evenly spaced; 0 keeps all. Each image counts once there.
      sampling: keys of the config section `sampling` that the protocol fixes.
      features: of Fréchet and kernel distances and neighbourhoods.
      resizing: convention of the resize to InceptionV3's 299 pixels, see `eval.resizing`.
      clip: name of the CLIP on the Hugging Face hub.
      measures: some of MEASURES. "ceiling" also measures encoded and decoded real images; it and
        those after it need a model and its data set.
      neighbours: k of precision, recall, density and coverage.
      closed_balls: whether the balls of precision and recall include their edge, see
        `eval.neighbours`.
      subsets, subset_size: of the kernel distance; a subset has at most half of the images.
      bound_images, draws: images per split, and times per image, for the bound: t = 1 and draws -
        1 strata of the others. A split with fewer images has more times for each, at most all T.
      half: "validation", "test" or "both" halves of the held-out splits that reconstruction and the
        measures after it in MEASURES use.
      seed: of captions, sampling noise and subsets.
      omits: what the published protocol measures in addition.
    """

    name: str
    parts: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"pictures": TEST})
    images: int
    repeat: bool = True
    captions: str = "random"
    classes: str = "even"
    reference: str = "own"
    held: int = 0
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: str = "inception"
    resizing: str = "pytorch-fid"
    clip: str = "openai/clip-vit-base-patch32"
    measures: tuple[str, ...] = ("frechet", "kid", "neighbours", "inception_score")
    neighbours: int = 5
    closed_balls: bool = False
    subsets: int = 100
    subset_size: int = 1000
    bound_images: int = 1024
    draws: int = 8
    half: str = "both"
    seed: int = 0
    omits: str = ""

    def __post_init__(self):
        for field, value, known in (
            ("captions", self.captions, ("first", "random")),
            ("classes", self.classes, ("even", "frequency")),
            ("features", self.features, FEATURES),
            ("half", self.half, ("both", *HALVES)),
            ("resizing", self.resizing, RESIZING),
        ):
            if value not in known:
                raise UserError(
                    f"{field} of the protocol {self.name} must be one of {', '.join(known)}, got "
                    f"{value!r}"
                )
        if unknown := [measure for measure in self.measures if measure not in MEASURES]:
            raise UserError(
                f"the protocol {self.name} has the measure {unknown[0]!r}; there are "
                f"{', '.join(MEASURES)}"
            )
        for measure, features in (("inception_score", "inception"), ("cmmd", "clip")):
            if measure in self.measures and self.features != features:
                raise UserError(
                    f"the measure {measure} of the protocol {self.name} needs {features} features, "
                    f"got {self.features}"
                )
        if (
            min(self.images, self.neighbours, self.subsets, self.bound_images, self.draws) < 1
            or self.subset_size < 2
        ):
            raise UserError(
                f"the numbers of the protocol {self.name} must be at least 1, its subset_size at "
                "least 2"
            )
        if min(self.held, self.seed) < 0:
            raise UserError(f"held and seed of the protocol {self.name} must not be negative")

    def half_of(self, split: str) -> str:
        """The name of the protocol's half of a held-out split, see `data.batches.indices`."""
        return split if self.half == "both" else f"{split}/{self.half}"


_CUB = Protocol(
    name="vqdiffusion-cub",
    images=30_000,
    measures=("frechet", "kid", "neighbours", "inception_score", "clip_score"),
)
_IMAGENET = Protocol(
    name="vqdiffusion-imagenet",
    images=50_000,
    reference=ALL,
    held=10_000,
    sampling={"top_p": 0.869},
)
_EMOJI64 = Protocol(
    name="emoji64",
    parts={"seen_cells": TRAIN, "held_out_cells": f"{CELLS}/{splits.TEST}"},
    images=500,
    repeat=False,
    captions="first",
    features="vgg16",
    measures=(
        "kid",
        "retrieval",
        "ceiling",
        "reconstruction",
        "colours",
        "free_colours",
        "two_things",
        "synonyms",
        "masked_bits",
        "repair",
    ),
    subsets=50,
    subset_size=200,
    half=splits.TEST,
)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="emoji",
            parts={"seen_cells": "train", "held_out_cells": "held_out_cells"},
            images=512,
            repeat=False,
            captions="first",
            features="vgg16",
            measures=("kid", "retrieval", "ceiling", "bound", "reconstruction"),
            subsets=50,
            subset_size=200,
        ),
        _EMOJI64,
        # for choosing settings; free prompts and synonyms, which have no halves, are left out
        dataclasses.replace(
            _EMOJI64,
            name="emoji64-validation",
            parts={"seen_cells": TRAIN, "held_out_cells": f"{CELLS}/{VALIDATION}"},
            measures=tuple(
                measure
                for measure in _EMOJI64.measures
                if measure not in ("free_colours", "synonyms")
            ),
            half=VALIDATION,
        ),
        # 30,000 images against as many real ones; smaller sets are over-sampled (the authors, in a
        # GitHub issue)
        _CUB,
        dataclasses.replace(_CUB, name="vqdiffusion-flowers"),
        dataclasses.replace(_CUB, name="vqdiffusion-coco"),
        # 50,000 images against the training set; the authors state the truncation for ImageNet, not
        # for FFHQ
        _IMAGENET,
        dataclasses.replace(_IMAGENET, name="vqdiffusion-ffhq", sampling={}),
        # openai/guided-diffusion: TensorFlow's graph and resizing, precision and recall with k = 3
        # and closed balls against 10,000 real images
        Protocol(
            name="adm",
            images=50_000,
            reference=ALL,
            held=10_000,
            resizing="tf-legacy",
            neighbours=3,
            closed_balls=True,
            measures=("frechet", "neighbours", "inception_score"),
            omits="sFID; the inception score of images in their order, in splits of 5,000 "
            "(here shuffled, in 10 splits)",
        ),
        # GaParmar/clean-fid: antialiased resizing, all real images, 100 subsets of 1,000 for the
        # kernel distance
        Protocol(
            name="clean",
            images=50_000,
            reference=ALL,
            held=50_000,
            resizing="clean",
            measures=("frechet", "kid"),
        ),
        # Jayasumana et al. 2024 (arXiv:2401.09603): 30,000 images for captions of held-out ones
        Protocol(
            name="cmmd",
            images=30_000,
            features="clip",
            clip="openai/clip-vit-large-patch14-336",
            measures=("cmmd",),
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. UserError if there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}, only {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def with_overrides(
    *,
    name: str,
    images: int = 0,
    bound_images: int = 0,
    draws: int = 0,
    subsets: int = 0,
    subset_size: int = 0,
    seed: int = 0,
) -> Protocol:
    """The named protocol with some numbers replaced; 0 keeps the protocol's."""
    numbers = dict(
        images=images,
        bound_images=bound_images,
        draws=draws,
        subsets=subsets,
        subset_size=subset_size,
        seed=seed,
    )
    return dataclasses.replace(
        get_protocol(name), **{key: value for key, value in numbers.items() if value}
    )
