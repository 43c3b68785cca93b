"""Feature extractors: uint8 images in, one feature vector each out, from pretrained networks.

EfficientNet, VGG16 and AlexNet install with pip; the weights of InceptionV3 and CLIP are files to
fetch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.eval.resizing import CONVENTIONS, middle_square, resize
from vqd_jax.models.clip import MEAN, STD
from vqd_jax.models.efficientnet import EfficientNetLite0
from vqd_jax.models.inception import SIZE, WIDTHS, InceptionV3
from vqd_jax.models.lpips import VGG16, vgg_features
from vqd_jax.models.weights.clip_towers import load_clip
from vqd_jax.models.weights.efficientnet_lite0 import load_efficientnet_lite0
from vqd_jax.models.weights.inception import load_inception
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.runtime.progress import track
from vqd_jax.runtime.devices import Devices, local_devices, map_rows, replicate

Pictures = UInt8[np.ndarray, "n H W 3"]


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Embeds rows, as a rule uint8 images of one size, in batches; the last batch is padded, so
    that one program is compiled.

    name: of the features, for reports; embed: (params, rows) -> features, whose products are full
    float32 on every device;
    batch: rows a call, which all local devices share.
    """

    name: str
    params: Any
    embed: Callable[[Any, Shaped[Array, "b ..."]], Float[Array, "b d"]]
    batch: int = 64

    def __post_init__(self):
        if self.batch < 1:
            raise UserError(f"a feature extractor needs batch >= 1, got {self.batch}")

    def __call__(self, rows: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        if not len(rows):
            raise UserError(f"there is nothing to take {self.name} features of")
        starts = range(0, len(rows), self.batch)
        features = []
        for start in (
            track(starts, len(starts), f"{self.name} features", "batch")
            if len(starts) > 1
            else starts
        ):
            chunk = rows[start : start + self.batch]
            padded = np.pad(chunk, ((0, self.batch - len(chunk)), *((0, 0),) * (rows.ndim - 1)))
            features.append(
                np.asarray(_features(self.embed, local_devices(self.batch), self.params, padded))[
                    : len(chunk)
                ]
            )
        return np.concatenate(features)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    embed: Callable, devices: Devices, params: Any, rows: Shaped[Array, "b ..."]
) -> Float[Array, "b d"]:
    with jax.default_matmul_precision(
        "highest"
    ):  # accelerators would round to fewer digits than the published numbers have
        return map_rows(embed, devices, params, rows)


def _signed(images: UInt8[Array, "*b H W 3"]) -> Float[Array, "*b H W 3"]:
    return images.astype(jnp.float32) / 127.5 - 1


def efficientnet_lite0(size: int = 128, batch: int = 64) -> Extractor:
    """ImageNet features (n, 1280) of images resized to `size` x `size`, bicubic.

    The default was measured at 32 px on 300 emoji in each of two styles against 1,595 a style. For
    sizes 96, 112, 128, 160, 224 the right one is nearest for 56, 54, 57, 57, 47 % of softened and
    noisy copies, and for 34, 36, 39, 41, 44 % of the other style's drawings; 340, 260, 215, 135, 70
    images/s on two busy cores.
    """
    if size < 32:
        raise UserError(
            f"EfficientNet-Lite0 needs images of at least 32 pixels a side, got size={size}"
        )

    def embed(params, images):
        resized = jax.image.resize(_signed(images), (images.shape[0], size, size, 3), "bicubic")
        return EfficientNetLite0().apply({"params": params}, resized)[0]

    params = replicate(load_efficientnet_lite0(), local_devices(batch))
    return Extractor(name="efficientnet_lite0", params=params, embed=embed, batch=batch)


def vgg16(batch: int = 64) -> Extractor:
    """Features (n, 512): the global average of relu5_3 at the images' own size (at least 16
    pixels).
    """

    def embed(params, images):
        return vgg_features(VGG16().apply({"params": params}, _signed(images)))

    return Extractor(
        name="vgg16",
        params=replicate(load_lpips()["vgg"], local_devices(batch)),
        embed=embed,
        batch=batch,
    )


def inception(
    path: str | Path | None = None,
    resizing: str = "pytorch-fid",
    output: str = "2048",
    batch: int = 64,
) -> Extractor:
    """Features of the FID's InceptionV3.

    path: of its weights, as `convert.inception.load_inception` has it. resizing: how images become
    299 x 299, as `eval.resizing` has it, and bytes numbers: x / 127.5 - 1 for pytorch-fid, x / 128
    - 1 for the others. output: of models.inception.WIDTHS: "2048" for FID and KID, whose
    `inception_logits` are those of the Inception score.
    """
    if resizing not in CONVENTIONS or output not in WIDTHS:
        raise UserError(
            f"Inception features come with resizing={' | '.join(CONVENTIONS)} and "
            f"output={' | '.join(WIDTHS)}, "
            f"got {resizing!r} and {output!r}"
        )
    unit = 127.5 if resizing == "pytorch-fid" else 128

    def embed(params, images):
        resized = resize(images.astype(jnp.float32), (SIZE, SIZE), resizing)
        return InceptionV3().apply({"params": params}, resized / unit - 1)[output]

    params = replicate(load_inception(path), local_devices(batch))
    return Extractor(
        name=f"Inception {output} ({resizing})", params=params, embed=embed, batch=batch
    )


def inception_logits(
    extractor: Extractor, features: Float[np.ndarray, "n 2048"]
) -> Float[np.ndarray, "n classes"]:
    """Of the 1008 classes, less their bias as the Inception score has them, from the features
    "2048" of `inception`.
    """
    return features @ np.asarray(extractor.params["fc"]["kernel"])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP: embeddings (n, d) of uint8 images, and of captions as CLIP's tokenizer gives their
    ids (n, m).
    """

    images: Extractor
    captions: Extractor


def clip(folder: str | Path, batch: int = 64) -> Clip:
    """The CLIP in a folder or file, as `convert.clip.read_clip` has it: OpenAI's with vision
    transformers, of any size.

    Images of any size become the square that the model takes by `resizing.middle_square`. Their
    embeddings have the length that the projection gives them, those of captions the length 1.
    """
    image, caption, params = load_clip(folder)

    def embed(params, images):
        mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
        return image.apply(
            {"params": params},
            (middle_square(images, image.size).astype(jnp.float32) / 255 - mean) / std,
        )

    name, params = (
        f"CLIP {image.width}/{image.patch} {image.size} px",
        replicate(params, local_devices(batch)),
    )
    return Clip(
        images=Extractor(name=f"{name} image", params=params["image"], embed=embed, batch=batch),
        captions=Extractor(
            name=f"{name} caption",
            params=params["caption"],
            batch=batch,
            embed=lambda params, ids: caption.apply({"params": params}, ids),
        ),
    )
