"""CLIP (Radford et al. 2021): embeds images and captions in one space, where their cosine measures
how well they match.

Both towers are transformers of the same blocks; the caption's is `text_clip.ClipText`, of which the
embedding takes the state at the end token.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import TextIds
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.text_learned import INIT, TextBlock, text_norm
from vqd_jax.models.transformer import quick_gelu

# Of images in [0, 1], by channel
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImage(nn.Module):
    """Images of `size` pixels a side, normalised with MEAN and STD -> embeddings, not normalised.

    | here | OpenAI (under `visual.`) | Hugging Face (under `vision_model.`) |
    |---|---|---|
    | patches | conv1 | embeddings.patch_embedding |
    | class_embedding | class_embedding | embeddings.class_embedding |
    | position_embedding | positional_embedding | embeddings.position_embedding.weight |
    | norm_in, norm | ln_pre, ln_post | pre_layrnorm, post_layernorm |
    | projection | proj | visual_projection.weight, at the top |

    The blocks are those of ClipText. ViT-B/32 has size 224, patches of 32, width 768, 12 layers, 12
    heads and embeddings of 512.
    """

    size: int
    patch: int
    width: int
    layers: int
    heads: int
    embedding: int

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
        x = rearrange(x, "b h w d -> b (h w) d")
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
    """Token ids -> embeddings of length 1; the end token has the largest id, and tokens after the
    first one have no influence.
    """

    tower: ClipText
    embedding: int

    @nn.compact
    def __call__(self, ids: TextIds) -> Float[Array, "b z"]:
        states, _ = self.tower(ids)
        # The states are normalised, which changes only the length of the projection.
        end = states[jnp.arange(len(ids)), jnp.argmax(ids, axis=1)]
        x = nn.Dense(self.embedding, use_bias=False, name="projection")(end)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
