"""Converts CLIP's text tower, with the names of OpenAI or Hugging Face, to parameters of
`models.text_clip.ClipText`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.folders import read_weights, weights_in
from vqd_jax.models.weights.rules import Rule, layer_rules, norm_rules, numbered

Arrays = dict[str, np.ndarray]
OPENAI = ("ViT-B-32.pt", "ViT-L-14.pt", "ViT-L-14-336px.pt")
DROP = [
    r"visual\..*",
    r"vision_model\..*",
    r"(visual|text)_projection(\.weight)?",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
    r"(text_model\.)?embeddings\.position_ids",
]
_BLOCK = r"(?:text_model\.)?(?:encoder\.layers|transformer\.resblocks)\.(\d+)\."
_LAYERS = {
    r"(?:self_attn|attn)\.q_proj": "attention/query",
    r"(?:self_attn|attn)\.k_proj": "attention/key",
    r"(?:self_attn|attn)\.v_proj": "attention/value",
    r"(?:self_attn|attn)\.out_proj": "attention/out",
    r"mlp\.(?:fc1|c_fc)": "mlp_in",
    r"mlp\.(?:fc2|c_proj)": "mlp_out",
}
_NORMS = {r"(?:layer_norm|ln_)1": "norm_1", r"(?:layer_norm|ln_)2": "norm_2"}


def block_rules(block: str, into: str = "") -> list[Rule]:
    """Rules for transformer blocks; `block` is the pattern of their keys' prefix, with a group for
    the block's number.
    """
    return [
        rule
        for make, names in ((layer_rules, _LAYERS), (norm_rules, _NORMS))
        for theirs, ours in names.items()
        for rule in make(rf"{block}{theirs}", rf"{into}block_\1/{ours}")
    ]


RULES = [
    Rule(
        source=r"(?:(?:text_model\.)?embeddings\.)?token_embedding\.weight",
        target="token_embedding/embedding",
    ),
    Rule(
        source=r"(?:text_model\.)?embeddings\.position_embedding\.weight|positional_embedding",
        target="position_embedding",
    ),
    *block_rules(_BLOCK),
    *norm_rules(r"(?:(?:text_model\.)?final_layer_norm|ln_final)", "norm"),
]


def split_fused(source: Mapping[str, np.ndarray]) -> Arrays:
    """Splits OpenAI's fused in_proj of each block into q_proj, k_proj and v_proj."""
    out = {}
    for key, array in source.items():
        block, fused, kind = key.rpartition("in_proj_")
        if not fused or ".resblocks." not in key:
            out[key] = array
            continue
        if not array.ndim or len(array) % 3:
            raise UserError(
                f"the CLIP weights have {key!r} of shape {array.shape}; the length of "
                "its first axis must be a multiple of 3, for query, key and value"
            )
        out |= {f"{block}{name}_proj.{kind}": part for name, part in zip("qkv", np.split(array, 3))}
    return out


def shape_of(source: Mapping[str, np.ndarray], pattern: str) -> tuple[int, ...] | None:
    """Shape of the first array whose key matches, None if there is none."""
    return next((array.shape for key, array in source.items() if re.fullmatch(pattern, key)), None)


def sizes(source: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Fields of `ClipText`, from the shapes of the arrays."""
    tokens, positions = (shape_of(source, rule.source) or () for rule in RULES[:2])
    if [len(tokens), len(positions)] != [2, 2] or 0 in (*tokens, *positions):
        raise UserError(
            "these are not the weights of a CLIP text tower: there is no token or position "
            "embedding"
        )
    return {
        "vocabulary": tokens[0],
        "length": positions[0],
        "width": tokens[1],
        "layers": numbered(_BLOCK, source),
        "heads": heads(tokens[1]),
    }


def heads(width: int) -> int:
    """Number of heads; they have 64 features in all published towers."""
    return max(width // 64, 1)


def read_clip(folder: str | Path) -> Arrays:
    """Reads the weights from such a file, or from a folder of transformers or with one of OPENAI's
    files.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        files = [weights_in(path), *(path / name for name in OPENAI if (path / name).is_file())]
        found = next(filter(None, files), None)
        if found is None:
            raise UserError(
                f"there are no CLIP weights in {path}: put one of model.safetensors, "
                f"pytorch_model.bin, {', '.join(OPENAI)} there, for example from "
                "openai/clip-vit-base-patch32 on the Hugging Face hub"
            )
        path = found
    return split_fused(read_weights(path))
