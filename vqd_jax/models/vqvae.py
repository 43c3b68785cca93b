"""Convolutional encoder and decoder of the VQGAN family (Esser et al. 2021), images to a grid of
code vectors and back.

Encoder: conv, then per level residual blocks (with attention at chosen resolutions) and a
downsample, then residual-attention-residual, GroupNorm, conv. The decoder mirrors it with one more
block a level.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Images
from vqd_jax.models.linear import Conv, Linear

Map = Float[Array, "b h w c"]
Resized = Float[Array, "b _ _ _"]  # a map of another size


def norm(x: Map, name: str) -> Map:
    """GroupNorm with 32 groups, or with fewer where 32 do not divide the channels."""
    return nn.GroupNorm(math.gcd(32, x.shape[-1]), epsilon=1e-6, name=name)(x).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut where the width changes."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w _"]:
        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(
            jax.nn.silu(norm(x, "norm1"))
        )
        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(
            jax.nn.silu(norm(h, "norm2"))
        )
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SpatialAttention(nn.Module):
    """Single-head attention over the positions of a feature map, residual."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> Map:
        _, h, w, c = x.shape
        flat = rearrange(norm(x, "norm"), "b h w c -> b (h w) c")
        dense = lambda name: Linear(c, dtype=self.dtype, name=name)
        scores = jnp.einsum("bqc,bnc->bqn", dense("q")(flat), dense("k")(flat))
        weights = jax.nn.softmax(scores.astype(jnp.float32) * c**-0.5).astype(flat.dtype)
        out = jnp.einsum("bqn,bnc->bqc", weights, dense("v")(flat))
        return x + rearrange(dense("out")(out), "b (h w) c -> b h w c", h=h, w=w)


def fold(x: Map, by: int) -> Resized:
    """Space to depth: each square of `by` x `by` pixels becomes one position."""
    return rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=by, j=by)


def unfold(x: Map, by: int) -> Resized:
    """Depth to space, the inverse of `fold`."""
    return rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=by, j=by)


class Trunk(nn.Module):
    """The fields of encoder and decoder, which are those of `VQVAE`, and the parts they share."""

    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    attention_resolutions: tuple[int, ...]
    middle_attention: bool
    resampling: str
    patch_size: int
    latent_width: int
    dtype: DTypeLike

    def conv(self, features: int, name: str) -> nn.Module:
        return Conv(features, (3, 3), dtype=self.dtype, name=name)

    def level(self, x: Map, features: int, blocks: int, name: str) -> Resized:
        """Residual blocks at one resolution, with attention after each if it is chosen for it."""
        for j in range(blocks):
            x = ResidualBlock(features, self.dtype, name=f"{name}_block{j}")(x)
            if x.shape[1] in self.attention_resolutions:
                x = SpatialAttention(self.dtype, name=f"{name}_attention{j}")(x)
        return x

    def middle(self, x: Map) -> Map:
        """The blocks at the coarsest resolution."""
        x = ResidualBlock(x.shape[-1], self.dtype, name="middle_block0")(x)
        if self.middle_attention:
            x = SpatialAttention(self.dtype, name="middle_attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="middle_block1")(x)


class Encoder(Trunk):
    """Images to maps of `latent_width` channels, float32."""

    @nn.compact
    def __call__(self, x: Images) -> Resized:
        x = self.conv(self.channels, "conv_in")(fold(x, self.patch_size).astype(self.dtype))
        for i, m in enumerate(self.multipliers):
            x = self.level(x, self.channels * m, self.residual_blocks, f"down{i}")
            if i < len(self.multipliers) - 1:
                if self.resampling == "fold":
                    x = Linear(x.shape[-1], dtype=self.dtype, name=f"down{i}_resample")(fold(x, 2))
                else:  # pads below and on the right only, as the released codecs do
                    x = Conv(
                        x.shape[-1],
                        (3, 3),
                        strides=2,
                        padding=((0, 1), (0, 1)),
                        dtype=self.dtype,
                        name=f"down{i}_resample",
                    )(x)
        x = self.middle(x)
        x = self.conv(self.latent_width, "conv_out")(jax.nn.silu(norm(x, "norm_out")))
        return x.astype(jnp.float32)


class Decoder(Trunk):
    """Maps of `latent_width` channels to the input of the last convolution."""

    @nn.compact
    def __call__(self, z: Map) -> Resized:
        top = self.channels * self.multipliers[-1]
        x = self.middle(self.conv(top, "conv_in")(z.astype(self.dtype)))
        for i, m in reversed(list(enumerate(self.multipliers))):
            x = self.level(x, self.channels * m, self.residual_blocks + 1, f"up{i}")
            if i > 0:
                c = x.shape[-1]
                if self.resampling == "fold":
                    x = unfold(Linear(4 * c, dtype=self.dtype, name=f"up{i}_resample")(x), 2)
                else:
                    x = self.conv(c, f"up{i}_resample")(x.repeat(2, axis=1).repeat(2, axis=2))
        return jax.nn.silu(norm(x, "norm_out"))


class VQVAE(nn.Module):
    """The codec without its codebook: `encode` to vectors, `decode` from (quantised) vectors.

    Attributes:
      channels, multipliers: channels times multipliers are the widths at each resolution, finest
        first; a downsampling follows each but the last.
      residual_blocks: per level (the decoder has one more).
      attention_resolutions: feature-map heights at which attention follows each residual block.
      middle_attention: attention at the coarsest resolution, as in VQGAN.
      resampling: "conv" (as released) or "fold" (space to depth and a 1x1 convolution; several
        times faster on a CPU).
      patch_size: side of the squares of pixels that `fold` merges before the first convolution; 1
        is the VQGAN.
      latent_width: channels between the encoder or decoder and the 1x1 convolution next to it.
      code_width: width of a code vector.
    """

    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    attention_resolutions: tuple[int, ...]
    middle_attention: bool
    resampling: str
    patch_size: int
    latent_width: int
    code_width: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.resampling not in ("conv", "fold"):
            raise UserError(f"vqvae.resampling must be conv or fold, got {self.resampling!r}")
        names = {field.name for field in dataclasses.fields(Trunk)} - {"parent", "name"}
        trunk = {name: getattr(self, name) for name in names}
        self.encoder, self.decoder = Encoder(**trunk), Decoder(**trunk)
        self.to_code, self.from_code = Linear(self.code_width), Linear(self.latent_width)
        self.last = Conv(3 * self.patch_size**2, (3, 3), dtype=self.dtype)

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    def encode(self, images: Images) -> Float[Array, "b h w z"]:
        """Vectors to quantise."""
        return self.to_code(self.encoder(images))

    def decode(self, z: Float[Array, "b h w z"]) -> Images:
        """Images, not clipped."""
        return self.paint(self.features(z))

    def features(self, z: Float[Array, "b h w z"]) -> Resized:
        """Everything of the decoder but its last convolution."""
        return self.decoder(self.from_code(z))

    def paint(self, x: Map) -> Images:
        """The decoder's last convolution."""
        return unfold(self.last(x), self.patch_size).astype(jnp.float32)

    def __call__(self, images: Images) -> Images:
        return self.decode(self.encode(images))
