"""The real images that generated ones are compared with, or published statistics of them."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.data.source import Items
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Statistics
from vqd_jax.eval.image_sets import IMAGES, ArrayImages, ResizedImages
from vqd_jax.eval.protocols import Protocol

# the measures that need real images, not only mean and covariance of their features
IMAGE_MEASURES = ("kid", "neighbours", "cmmd")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """Real images with their features, published statistics of them, or both: the Fréchet distance
    then takes the statistics.
    """

    images: Items | None = None
    collected: Collected | None = None
    statistics: Statistics | None = None

    def describe(self) -> dict[str, Any]:
        """Source and numbers of images for the result file."""
        source = {"statistics": str(self.statistics.path)} if self.statistics else {}
        if self.collected is None:
            return source
        images = self.images
        if isinstance(images, ResizedImages):
            source["resizing"], images = images.describe(), images.source
        if isinstance(images, ImageFolder):
            source["folder"] = str(images.path)
        elif isinstance(images, ArrayImages):
            source["file"] = str(images.path)
        return source | {
            "images": self.collected.count,
            "distinct": len(self.images),
            "held": len(self.collected.indices),
        }


def why_unused(protocol: Protocol, arrays: Collection[str]) -> str:
    """Why the protocol cannot use the statistics in a file with these arrays, or ""."""
    if "frechet" not in protocol.measures:
        return f"only give a Fréchet distance, which the protocol {protocol.name} does not have"
    from_adm = "mu_s" in arrays or IMAGES in arrays
    if from_adm and (protocol.features, protocol.resizing) != ("inception", "tf-legacy"):
        return (
            "are of guided-diffusion: of InceptionV3 with the resizing of the protocol adm, not of "
            f"{protocol.name}"
        )
    return ""


def read_statistics(
    path: Path, protocol: Protocol, network: Extractor, size: tuple[int, int] | None
) -> Statistics:
    """Statistics in an .npz file. UserError if their width is not that of the network's features of
    images of this size.
    """
    statistics = Statistics.read(path)
    if size:
        pixels = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
        width = jax.eval_shape(network.embed, network.params, pixels).shape[-1]
        if len(statistics.mean) != width:
            raise UserError(
                f"{path} has statistics of {len(statistics.mean)} features, and the protocol "
                f"{protocol.name} has {width} ({network.name})"
            )
    return statistics
