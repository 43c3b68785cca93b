"""CLIP (Radford et al. 2021): an image and a caption as two vectors of one space, whose cosine says
how well they go together.

The towers are transformers of the same blocks; that of captions is `text_clip.ClipText`, read at
the end token.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import TextIds
from vqd_jax.models.text_clip import ClipText, quick_gelu
from vqd_jax.models.text_learned import INIT, TextBlock, text_norm

MEAN, STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of images in [0, 1], by channel


class ClipImage(nn.Module):
    """Images of `size` pixels a side, less MEAN and over STD -> embeddings as the projection gives them, of any length.

    | here | OpenAI (under `visual.`) | Hugging Face (under `vision_model.`) |
    |---|---|---|
    | patches | conv1 | embeddings.patch_embedding |
    | class_embedding | class_embedding | embeddings.class_embedding |
    | position_embedding | positional_embedding | embeddings.position_embedding.weight |
    | norm_in, norm | ln_pre, ln_post | pre_layrnorm, post_layernorm |
    | projection | proj | visual_projection.weight, at the top |

    The blocks are those of ClipText.
    """

    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    embedding: int = 512

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b z"]:
        if images.shape[1:3] != (self.size, self.size):
            raise UserError(
                f"this CLIP takes images of {self.size} pixels a side, got "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        x = nn.Conv(
            self.width,
            (self.patch,) * 2,
            (self.patch,) * 2,
            "VALID",
            use_bias=False,
            name="patches",
        )(images)
        x = x.reshape(len(x), -1, self.width)
        first = self.param("class_embedding", INIT, (self.width,))
        x = jnp.concatenate(
            [jnp.broadcast_to(first[None, None], (len(x), 1, self.width)), x], axis=1
        )
        x = text_norm("norm_in")(x + self.param("position_embedding", INIT, x.shape[1:])[None])
        everywhere: Bool[Array, "1 1 1 m"] = jnp.ones((1, 1, 1, x.shape[1]), bool)
        for i in range(self.layers):
            x = TextBlock(self.heads, quick_gelu, jnp.float32, name=f"block_{i}")(x, everywhere)
        return nn.Dense(self.embedding, use_bias=False, name="projection")(
            text_norm("norm")(x[:, 0])
        )


class ClipCaption(nn.Module):
    """Token ids, of which the end token is the largest -> embeddings of length 1; what is behind
    the first end token is not read.
    """

    tower: ClipText
    embedding: int = 512

    @nn.compact
    def __call__(self, ids: TextIds) -> Float[Array, "b z"]:
        states, _ = self.tower(ids)
        end = states[
            jnp.arange(len(ids)), jnp.argmax(ids, axis=1)
        ]  # of length 1, which changes that of the projection alone
        x = nn.Dense(self.embedding, use_bias=False, name="projection")(end)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
