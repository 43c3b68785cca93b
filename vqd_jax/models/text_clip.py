"""The text tower of CLIP ViT-B/32 (Radford et al. 2021) as VQ-Diffusion uses it: causal, with
QuickGELU.

The states are the final norm's output at every position, each scaled to length 1, without pooling
or projection; the padding after a caption counts as text.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import DTypeLike

from vqd_jax.core.shapes import TextIds, TextMask, TextStates
from vqd_jax.models.text_learned import INIT, TextBlock, check_text_shape, text_norm
from vqd_jax.models.transformer import quick_gelu


class ClipText(nn.Module):
    """Token ids → float32 states of norm 1 for the denoiser's cross-attention.

    | here | OpenAI | Hugging Face (under `text_model.`) |
    |---|---|---|
    | token_embedding/embedding | token_embedding.weight | embeddings.token_embedding.weight |
    | position_embedding | positional_embedding | embeddings.position_embedding.weight |
    | block_N/norm_1, norm_2 | transformer.resblocks.N.ln_1, ln_2 | encoder.layers.N.layer_norm1, layer_norm2 |
    | block_N/attention/query, key, value | …attn.in_proj_weight, _bias (thirds, in this order) | …self_attn.q_proj, … |
    | block_N/attention/out | …attn.out_proj | …self_attn.out_proj |
    | block_N/mlp_in, mlp_out | …mlp.c_fc, c_proj | …mlp.fc1, fc2 |
    | norm | ln_final | final_layer_norm |

    Kernels here are the transposes of PyTorch's weights. ViT-B/32 has 49408 tokens, length 77,
    width 512, 12 layers and 8 heads.
    """  # noqa: E501

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TextIds) -> tuple[TextStates, TextMask]:
        """States at all positions, and a mask that is True everywhere: the denoiser attends to the
        padding, too.
        """
        check_text_shape(ids, self.length, self.width, self.heads)
        x = nn.Embed(
            self.vocabulary,
            self.width,
            embedding_init=INIT,
            dtype=self.dtype,
            name="token_embedding",
        )(ids)
        positions = self.param("position_embedding", INIT, (self.length, self.width))
        x = x + positions[None].astype(self.dtype)
        causal = jnp.tril(jnp.ones((self.length, self.length), bool))[None, None]
        for i in range(self.layers):
            x = TextBlock(self.heads, quick_gelu, self.dtype, name=f"block_{i}")(x, causal)
        x = text_norm("norm")(x)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.ones_like(ids, bool)
