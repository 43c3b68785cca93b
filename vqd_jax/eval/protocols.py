"""How pictures are measured, by name: whose captions, how many pictures, which real ones, which
features, resizing and numbers.

Neither paper states all of this, so that its figures cannot be compared with others'; here a result
carries its whole protocol.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vqd_jax.core.errors import UserError

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
)
TEST, ALL = "held_out_items", "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is measured, on how much; copied into the result.

    Attributes:
      name: of the protocol.
      parts: name in the result → split of the data set whose pictures give the prompts.
      images: generated pictures of each part. A split with more pictures gives evenly spaced ones;
        one with fewer is gone through again and again if `repeat` is set, and otherwise gives one
        prompt a picture.
      captions: of each of these pictures the "first" caption, or a "random" one, drawn by the seed
      and the number of the prompt.
      classes: class models draw all classes "even"ly in turn, or at their "frequency": those of
      these pictures.
      reference: the real pictures: the "own" ones of the prompts, each as often as it gave one, or
      a split, all of it.
      held: features of the real pictures that are kept for what needs more than their mean and
        covariance, evenly spaced; 0 is all. Each picture counts once there.
      sampling: keys of the config's section `sampling` that belong to the protocol.
      features: of the Fréchet and kernel distances and the neighbourhoods. resizing: how pictures
      come to InceptionV3's 299 pixels.
      clip: which CLIP, a name on the Hugging Face hub.
      measures: of MEASURES. "ceiling" measures encoded and decoded real pictures, too; it and what
      follows need a data set and a model.
      neighbours: k of precision, recall, density and coverage.
      subsets, subset_size: of the kernel distance; a subset has at most half of the pictures.
      bound_images, draws: images per split and times per image of the bound.
      seed: of the captions, the pictures' noise and the subsets.
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
    subsets: int = 100
    subset_size: int = 1000
    bound_images: int = 1024
    draws: int = 8
    seed: int = 0

    def __post_init__(self):
        for what, value, known in (
            ("captions", self.captions, ("first", "random")),
            ("classes", self.classes, ("even", "frequency")),
            ("features", self.features, FEATURES),
            ("resizing", self.resizing, RESIZING),
        ):
            if value not in known:
                raise UserError(
                    f"{what} of the protocol {self.name} must be one of {', '.join(known)}, got "
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
                    f"the measure {measure} of the protocol {self.name} is one of {features} "
                    f"features, not of {self.features}"
                )
        if (
            min(self.images, self.neighbours, self.subsets, self.bound_images, self.draws) < 1
            or self.subset_size < 2
        ):
            raise UserError(
                f"the numbers of the protocol {self.name} must be at least 1, that of pictures in "
                "a subset 2"
            )
        if min(self.held, self.seed) < 0:
            raise UserError(f"held and seed of the protocol {self.name} must not be negative")


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
        # 30,000 pictures against as many real ones, of which smaller sets have too few: they are
        # over-sampled (the authors, in a thread)
        _CUB,
        dataclasses.replace(_CUB, name="vqdiffusion-flowers"),
        dataclasses.replace(_CUB, name="vqdiffusion-coco"),
        # 50,000 pictures against all of training; the truncation is what the authors found for
        # ImageNet, that for FFHQ they did not say
        _IMAGENET,
        dataclasses.replace(_IMAGENET, name="vqdiffusion-ffhq", sampling={}),
        # openai/guided-diffusion: TensorFlow's graph and resizing, precision and recall with k = 3
        # against 10,000 real pictures
        Protocol(
            name="adm",
            images=50_000,
            reference=ALL,
            held=10_000,
            resizing="tf-legacy",
            neighbours=3,
            measures=("frechet", "neighbours", "inception_score"),
        ),
        # GaParmar/clean-fid: antialiased resizing, all real pictures, 100 subsets of 1,000 for the
        # kernel distance
        Protocol(
            name="clean",
            images=50_000,
            reference=ALL,
            held=50_000,
            resizing="clean",
            measures=("frechet", "kid"),
        ),
        # Jayasumana et al. 2024 (arXiv:2401.09603): 30,000 pictures for captions of held-out ones
        Protocol(
            name="cmmd",
            images=30_000,
            features="clip",
            clip="openai/clip-vit-large-patch14-336",
            measures=("cmmd",),
        ),
    )
}
FORMER = {"cells": "emoji"}  # names in the configs of old workdirs


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; UserError if there is none."""
    if (name := FORMER.get(name, name)) not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
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
    """The named protocol with some of its numbers replaced; 0 leaves one as it is."""
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
