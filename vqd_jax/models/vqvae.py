"""Convolutional encoder and decoder of the VQGAN family (Esser et al. 2021), images to a grid of
code vectors and back.

Encoder: conv, then per level residual blocks (with attention at chosen resolutions) and a
downsample, then residual-attention-residual, GroupNorm, conv. The decoder mirrors it with one more
block a level.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Images
from vqd_jax.models.linear import Linear

Map = Float[Array, "b h w c"]
Other = Float[Array, "b _ _ _"]  # a map of another size


def norm(x: Map, name: str) -> Map:
    return nn.GroupNorm(math.gcd(32, x.shape[-1]), epsilon=1e-6, name=name)(x).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut where the width changes."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w _"]:
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(
            jax.nn.silu(norm(x, "norm1"))
        )
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(
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
        b, h, w, c = x.shape
        flat = norm(x, "norm").reshape(b, h * w, c)
        dense = lambda name: Linear(c, dtype=self.dtype, name=name)
        logits = (
            jnp.einsum("bqc,bnc->bqn", dense("q")(flat), dense("k")(flat)).astype(jnp.float32)
            * c**-0.5
        )
        out = jnp.einsum(
            "bqn,bnc->bqc", jax.nn.softmax(logits).astype(flat.dtype), dense("v")(flat)
        )
        return x + dense("out")(out).reshape(b, h, w, c)


def fold(x: Map, by: int) -> Other:
    """(b, h by, w by, c) -> (b, h, w, by by c): each square of pixels becomes one position."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // by, by, w // by, by, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // by, w // by, by * by * c)


def unfold(x: Map, by: int) -> Other:
    """The inverse of `fold`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, by, by, c // (by * by))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * by, w * by, c // (by * by))


class Trunk(nn.Module):
    """What encoder and decoder share: residual blocks at one resolution, and the middle."""

    dtype: DTypeLike
    attention_resolutions: tuple[int, ...]

    def level(self, x, features, blocks, name):
        for j in range(blocks):
            x = ResidualBlock(features, self.dtype, name=f"{name}_block{j}")(x)
            if x.shape[1] in self.attention_resolutions:
                x = SpatialAttention(self.dtype, name=f"{name}_attention{j}")(x)
        return x

    def middle(self, x, attention):
        x = ResidualBlock(x.shape[-1], self.dtype, name="middle_block0")(x)
        if attention:
            x = SpatialAttention(self.dtype, name="middle_attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="middle_block1")(x)


class Encoder(Trunk):
    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    middle_attention: bool
    resampling: str
    patch_size: int
    latent_width: int

    @nn.compact
    def __call__(self, x: Images) -> Other:
        conv = lambda features, name: nn.Conv(features, (3, 3), dtype=self.dtype, name=name)
        x = conv(self.channels, "conv_in")(fold(x, self.patch_size).astype(self.dtype))
        for i, m in enumerate(self.multipliers):
            x = self.level(x, self.channels * m, self.residual_blocks, f"down{i}")
            if i < len(self.multipliers) - 1:
                if self.resampling == "fold":
                    x = Linear(x.shape[-1], dtype=self.dtype, name=f"down{i}_resample")(fold(x, 2))
                else:  # zeros on the right and below only, as in the released codecs
                    x = nn.Conv(
                        x.shape[-1],
                        (3, 3),
                        strides=2,
                        padding=((0, 1), (0, 1)),
                        dtype=self.dtype,
                        name=f"down{i}_resample",
                    )(x)
        x = self.middle(x, self.middle_attention)
        x = conv(self.latent_width, "conv_out")(jax.nn.silu(norm(x, "norm_out")))
        return x.astype(jnp.float32)


class Decoder(Trunk):
    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    middle_attention: bool
    resampling: str
    patch_size: int
    latent_width: int

    @nn.compact
    def __call__(self, z: Map) -> Other:
        conv = lambda features, name: nn.Conv(features, (3, 3), dtype=self.dtype, name=name)
        top = self.channels * self.multipliers[-1]
        x = self.middle(conv(top, "conv_in")(z.astype(self.dtype)), self.middle_attention)
        for i, m in reversed(list(enumerate(self.multipliers))):
            x = self.level(x, self.channels * m, self.residual_blocks + 1, f"up{i}")
            if i > 0:
                c = x.shape[-1]
                if self.resampling == "fold":
                    x = unfold(Linear(4 * c, dtype=self.dtype, name=f"up{i}_resample")(x), 2)
                else:
                    x = conv(c, f"up{i}_resample")(x.repeat(2, axis=1).repeat(2, axis=2))
        return jax.nn.silu(norm(x, "norm_out"))


class VQVAE(nn.Module):
    """The codec without its codebook: `encode` to vectors, `decode` from (quantised) vectors.

    Attributes:
      channels, multipliers: width at each resolution, finest first; each but the last is followed
      by a halving.
      residual_blocks: per level (the decoder has one more).
      attention_resolutions: feature-map heights at which attention follows each residual block.
      middle_attention: attention at the coarsest resolution, as in VQGAN.
      resampling: "conv" (as released) or "fold" (space to depth and a 1x1 convolution; several
      times faster on a CPU).
      patch_size: pixels folded into channels before the first convolution; 1 is the VQGAN.
      latent_width: z channels. code_width: width of the codebook, reached by a 1x1 convolution on
      each side.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32,)
    middle_attention: bool = True
    resampling: str = "conv"
    patch_size: int = 1
    latent_width: int = 256
    code_width: int = 256
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.resampling not in ("conv", "fold"):
            raise UserError(f"vqvae.resampling must be conv or fold, got {self.resampling!r}")
        trunk = dict(
            dtype=self.dtype,
            attention_resolutions=self.attention_resolutions,
            channels=self.channels,
            multipliers=self.multipliers,
            residual_blocks=self.residual_blocks,
            middle_attention=self.middle_attention,
            resampling=self.resampling,
            patch_size=self.patch_size,
            latent_width=self.latent_width,
        )
        self.encoder, self.decoder = Encoder(**trunk), Decoder(**trunk)
        self.to_code, self.from_code = Linear(self.code_width), Linear(self.latent_width)
        self.last = nn.Conv(3 * self.patch_size**2, (3, 3), dtype=self.dtype)

    @property
    def downsampling(self) -> int:
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    def encode(self, images: Images) -> Float[Array, "b h w z"]:
        return self.to_code(self.encoder(images))

    def decode(self, z: Float[Array, "b h w z"]) -> Images:
        """Images, not clipped."""
        return self.paint(self.features(z))

    def features(self, z: Float[Array, "b h w z"]) -> Other:
        """Everything of the decoder but its last convolution."""
        return self.decoder(self.from_code(z))

    def paint(self, x: Map) -> Images:
        """The decoder's last convolution."""
        return unfold(self.last(x), self.patch_size).astype(jnp.float32)

    def __call__(self, images: Images) -> Images:
        return self.decode(self.encode(images))
