"""Feature extractors from pretrained networks: uint8 images -> one feature vector each.

The weights of EfficientNet, VGG16 and AlexNet come with pip packages; those of InceptionV3 and CLIP
are files to download.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped, UInt8

from vqd_jax.core.cores import cores
from vqd_jax.core.errors import UserError
from vqd_jax.eval.resizing import (
    CONVENTIONS,
    clip_transform,
    clip_transform_one,
    resize,
    resize_clean_one,
)
from vqd_jax.models.clip import MEAN, STD
from vqd_jax.models.efficientnet import EfficientNetLite0
from vqd_jax.models.inception import SIZE, WIDTHS, InceptionV3
from vqd_jax.models.lpips import VGG16, vgg_features
from vqd_jax.models.weights.clip_towers import load_clip
from vqd_jax.models.weights.efficientnet_lite0 import load_efficientnet_lite0
from vqd_jax.models.weights.inception import load_inception
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.runtime.devices import Devices, local_devices, map_rows, replicate
from vqd_jax.runtime.progress import track

Picture = UInt8[np.ndarray, "_ _ 3"]  # of any size


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Embeds rows, usually uint8 images of one size, in batches. The last batch is padded, so that
    one program is compiled.

    Attributes:
      name: of the features, for messages.
      embed: (params, rows) -> features, with float32 matrix products on every device.
      batch: rows per call, which are sharded over the local devices.
      resize_one: for networks that resize each image on its own: does so on the host, for images of
        different sizes.
    """

    name: str
    params: Any
    embed: Callable[[Any, Shaped[Array, "b ..."]], Float[Array, "b d"]]
    batch: int = 64
    resize_one: Callable[[Picture], Num[np.ndarray, "_ _ 3"]] | None = None

    def __post_init__(self):
        if self.batch < 1:
            raise UserError(f"a feature extractor needs batch >= 1, got {self.batch}")

    def __call__(
        self, rows: Shaped[np.ndarray, "n ..."] | Sequence[Picture]
    ) -> Float[np.ndarray, "n d"]:
        if not len(rows):
            raise UserError(f"{self.name} features need at least one image")
        if not isinstance(rows, np.ndarray):
            if self.resize_one is None:
                raise UserError(f"{self.name} features need images of one size")
            with ThreadPoolExecutor(cores()) as pool:
                rows = np.stack([*pool.map(self.resize_one, rows)])
        starts = range(0, len(rows), self.batch)
        features = []
        if len(starts) > 1:
            starts = track(starts, len(starts), f"{self.name} features", "batch")
        for start in starts:
            chunk = rows[start : start + self.batch]
            padded = np.pad(chunk, ((0, self.batch - len(chunk)), *((0, 0),) * (rows.ndim - 1)))
            embedded = _features(self.embed, local_devices(self.batch), self.params, padded)
            features.append(np.asarray(embedded)[: len(chunk)])
        return np.concatenate(features)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    embed: Callable, devices: Devices, params: Any, rows: Shaped[Array, "b ..."]
) -> Float[Array, "b d"]:
    with jax.default_matmul_precision("highest"):  # the default of accelerators is too coarse
        return map_rows(embed, devices, params, rows)


def _signed(images: UInt8[Array, "*b H W 3"]) -> Float[Array, "*b H W 3"]:
    return images.astype(jnp.float32) / 127.5 - 1


def efficientnet_lite0(size: int = 128, batch: int = 64) -> Extractor:
    """ImageNet features (n, 1280) of images resized to `size` x `size`, bicubic.

    The default was chosen at 32 px on 300 emoji in each of two styles, in a gallery of 1,595 per
    style (images/s on two busy cores):

    | size | 96 | 112 | 128 | 160 | 224 |
    |---|---|---|---|---|---|
    | blurred, noisy copies retrieved, % | 56 | 54 | 57 | 57 | 47 |
    | same emoji in the other style retrieved, % | 34 | 36 | 39 | 41 | 44 |
    | images/s | 340 | 260 | 215 | 135 | 70 |
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
    """Features (n, 512): the global average of relu5_3 of images in their size (at least 16 px)."""

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
    """Features of the InceptionV3 that FID uses.

    Args:
      path: of the weights, see `models.weights.inception.load_inception`.
      resizing: convention for the resize to 299 x 299, see `eval.resizing`. Pixels become x / 127.5
        - 1 for pytorch-fid, x / 128 - 1 for the others.
      output: one of `models.inception.WIDTHS`: "2048" for FID and KID; `inception_logits` computes
        the logits of the inception score from it.
    """
    if resizing not in CONVENTIONS or output not in WIDTHS:
        raise UserError(
            f"Inception features need resizing={' | '.join(CONVENTIONS)} and "
            f"output={' | '.join(WIDTHS)}, got {resizing!r} and {output!r}"
        )
    unit = 127.5 if resizing == "pytorch-fid" else 128

    def embed(params, images):
        resized = resize(images.astype(jnp.float32), (SIZE, SIZE), resizing)
        return InceptionV3().apply({"params": params}, resized / unit - 1)[output]

    params = replicate(load_inception(path), local_devices(batch))
    one = functools.partial(resize_clean_one, size=(SIZE, SIZE)) if resizing == "clean" else None
    return Extractor(
        name=f"Inception {output} ({resizing})",
        params=params,
        embed=embed,
        batch=batch,
        resize_one=one,
    )


def inception_logits(
    extractor: Extractor, features: Float[np.ndarray, "n 2048"]
) -> Float[np.ndarray, "n classes"]:
    """Logits of the 1008 classes without bias, as in the inception score, from the features "2048"
    of `inception`.
    """
    return features @ np.asarray(extractor.params["fc"]["kernel"])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The two towers of a CLIP: uint8 images -> embeddings (n, d), token ids of captions (n, m) ->
    embeddings (n, d).
    """

    images: Extractor
    captions: Extractor


def clip(folder: str | Path, batch: int = 64) -> Clip:
    """Loads OpenAI's CLIP with a vision transformer from a folder or file, see
    `models.weights.clip_towers.load_clip`.

    Images of any size go through `resizing.clip_transform`. Image embeddings are not normalized,
    caption embeddings have length 1.
    """
    image, caption, params = load_clip(folder)

    def embed(params, images):
        mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
        return image.apply(
            {"params": params},
            (clip_transform(images, image.size).astype(jnp.float32) / 255 - mean) / std,
        )

    name = f"CLIP {image.width}/{image.patch} {image.size} px"
    params = replicate(params, local_devices(batch))
    return Clip(
        images=Extractor(
            name=f"{name} image",
            params=params["image"],
            embed=embed,
            batch=batch,
            resize_one=functools.partial(clip_transform_one, size=image.size),
        ),
        captions=Extractor(
            name=f"{name} caption",
            params=params["caption"],
            batch=batch,
            embed=lambda params, ids: caption.apply({"params": params}, ids),
        ),
    )
