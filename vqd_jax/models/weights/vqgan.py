"""Converts image codecs of the VQGAN family, with the names of taming-transformers or diffusers, to
parameters of `models.vqvae`.

| here | taming, the released codecs | diffusers VQModel |
|---|---|---|
| encoder/downI_blockJ/conv1 | encoder.down.I.block.J.conv1 | encoder.down_blocks.I.resnets.J.conv1 |
| encoder/downI_attentionJ/q | encoder.down.I.attn.J.q | encoder.down_blocks.I.attentions.J.to_q |
| encoder/downI_resample | encoder.down.I.downsample.conv | encoder.down_blocks.I.downsamplers.0.conv |
| encoder/middle_block0, middle_attention | encoder.mid.block_1, attn_1 | encoder.mid_block.resnets.0, attentions.0 |
| decoder/upI_resample | decoder.up.I.upsample.conv | decoder.up_blocks.L-1-I.upsamplers.0.conv |
| last | decoder.conv_out | decoder.conv_out |
| to_code, from_code | quant_conv, post_quant_conv | quant_conv, post_quant_conv |
| codes | quantize.embedding.weight, quantize.embed.weight, quantize.embedding | quantize.embedding.weight |
"""  # noqa: E501

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.rules import (
    Rule,
    conv,
    inverse,
    layer_rules,
    norm_rules,
    numbered,
    pointwise,
    rename,
)

Arrays = dict[str, np.ndarray]
LEVELS = 10  # of resolution; the images of more would have thousands of pixels a token
CODEBOOK = r"quantize\.(?:embedding|embed)(?:\.weight)?"
DROP = [r"loss\..*", r"quantize\.(cluster_size|embedding_avg|ema_\w+)"]


def _block(source: str, target: str) -> list[Rule]:
    return [
        rule
        for n in "12"
        for rule in (
            *norm_rules(rf"{source}\.norm{n}", f"{target}/norm{n}"),
            *layer_rules(rf"{source}\.conv{n}", f"{target}/conv{n}", conv),
        )
    ] + layer_rules(rf"{source}\.nin_shortcut", f"{target}/shortcut", pointwise)


def _attention(source: str, target: str) -> list[Rule]:
    return norm_rules(rf"{source}\.norm", f"{target}/norm") + [
        rule
        for name, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out"))
        for rule in layer_rules(rf"{source}\.{name}", f"{target}/{ours}", pointwise)
    ]


RULES = [
    *_block(r"encoder\.down\.(\d+)\.block\.(\d+)", r"vqvae/encoder/down\1_block\2"),
    *_attention(r"encoder\.down\.(\d+)\.attn\.(\d+)", r"vqvae/encoder/down\1_attention\2"),
    *layer_rules(r"encoder\.down\.(\d+)\.downsample\.conv", r"vqvae/encoder/down\1_resample", conv),
    *_block(r"decoder\.up\.(\d+)\.block\.(\d+)", r"vqvae/decoder/up\1_block\2"),
    *_attention(r"decoder\.up\.(\d+)\.attn\.(\d+)", r"vqvae/decoder/up\1_attention\2"),
    *layer_rules(r"decoder\.up\.(\d+)\.upsample\.conv", r"vqvae/decoder/up\1_resample", conv),
    *_block(r"(encoder|decoder)\.mid\.block_1", r"vqvae/\1/middle_block0"),
    *_block(r"(encoder|decoder)\.mid\.block_2", r"vqvae/\1/middle_block1"),
    *_attention(r"(encoder|decoder)\.mid\.attn_1", r"vqvae/\1/middle_attention"),
    *layer_rules(r"(encoder|decoder)\.conv_in", r"vqvae/\1/conv_in", conv),
    *norm_rules(r"(encoder|decoder)\.norm_out", r"vqvae/\1/norm_out"),
    *layer_rules(r"encoder\.conv_out", "vqvae/encoder/conv_out", conv),
    *layer_rules(r"decoder\.conv_out", "vqvae/last", conv),
    *layer_rules("quant_conv", "vqvae/to_code", pointwise),
    *layer_rules("post_quant_conv", "vqvae/from_code", pointwise),
    *layer_rules(r"quantize\.proj", "projection", pointwise),
    Rule(source=CODEBOOK, target="codes"),
    Rule(source="remap", target="remap"),
    Rule(source="inverse", target="inverse"),
]


_NAMES = [
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"decoder\.up_blocks\.(\d+)\.attentions\.", r"decoder.up.\1.attn."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"group_norm\.", "norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
]


def rename_diffusers(source: Mapping[str, np.ndarray]) -> Arrays:
    """Renames the arrays of diffusers' VQModel as taming's, whose up levels count from the other
    end.
    """
    return rename(_other_end(source, "up_blocks"), _NAMES)


def to_diffusers(source: Mapping[str, np.ndarray]) -> Arrays:
    """Renames arrays of `rules.invert` as those of a VQModel, in which some linear layers are 1x1
    convolutions.
    """
    renamed = rename(_other_end(source, "up"), [inverse(*pair) for pair in _NAMES])
    return {
        key: array[..., None, None]
        if re.search(r"(quant_conv|conv_shortcut)\.weight$", key)
        else array
        for key, array in renamed.items()
    }


def _other_end(source: Mapping[str, np.ndarray], name: str) -> Arrays:
    """Counts the decoder's levels, which have that name, from the other end."""
    pattern = rf"decoder\.{name}\.(\d+)\."
    levels = 1 + max((int(m[1]) for key in source if (m := re.match(pattern, key))), default=-1)
    if not levels:
        raise UserError(f"these are not the weights of a VQModel: there is no decoder.{name}")
    return {
        re.sub(pattern, lambda m: f"decoder.{name}.{levels - 1 - int(m[1])}.", key): array
        for key, array in source.items()
    }


def codebook(source: Mapping[str, np.ndarray]) -> np.ndarray:
    """Vectors of all codes (k, z)."""
    vectors = next((array for key, array in source.items() if re.fullmatch(CODEBOOK, key)), None)
    if vectors is None or vectors.ndim != 2:
        raise UserError(
            "these are not the weights of a VQGAN codec: there is no codebook, quantize.embedding "
            "or quantize.embed"
        )
    return vectors


def with_remap(source: Mapping[str, np.ndarray], remap: np.ndarray) -> Arrays:
    """Adds the tables of a remap file, int (codes,), which has the token of each code: "remap", and
    "inverse", the first code of each token.
    """
    codes = codebook(source)
    if remap.ndim != 1 or not np.issubdtype(remap.dtype, np.integer) or len(remap) != len(codes):
        raise UserError(
            f"a remap file has a token for each of the {len(codes)} codes, this one has "
            f"{remap.dtype} {remap.shape}"
        )
    tokens, first = np.unique(remap, return_index=True)
    if not np.array_equal(tokens, np.arange(len(tokens))):
        raise UserError(f"the tokens of a remap file must be 0 to {len(tokens) - 1} without gaps")
    return dict(source) | {"remap": remap.astype(np.int32), "inverse": first.astype(np.int32)}


def sizes(source: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `models.vqvae.VQVAE`, the levels with attention and the shape of the codebook, from
    names and shapes.
    """

    def level(side: str, part: str) -> dict[int, set[int]]:
        levels: dict[int, set[int]] = {}
        for key in source:
            if m := re.match(rf"{side}\.(\d+)\.{part}\.(\d+)\.", key):
                levels.setdefault(int(m[1]), set()).add(int(m[2]))
        return levels

    blocks, attention = level(r"encoder\.down", "block"), level(r"encoder\.down", "attn")
    if not 0 < len(blocks) <= LEVELS or "encoder.conv_in.weight" not in source:
        raise UserError(
            "these are not the weights of a VQGAN codec: there is no encoder.conv_in or "
            f"encoder.down, or more than {LEVELS} levels of it"
        )
    try:
        channels = source["encoder.conv_in.weight"].shape[0]
        width = lambda i: source[f"encoder.down.{i}.block.0.conv1.weight"].shape[0]
        return {
            "vqvae": {
                "channels": channels,
                "multipliers": tuple(width(i) // channels for i in sorted(blocks)),
                "residual_blocks": numbered(r"encoder\.down\.0\.block\.(\d+)\.", source),
                "middle_attention": any("mid.attn_1." in key for key in source),
                "resampling": "conv",
                "patch_size": 1,
                "latent_width": source["encoder.conv_out.weight"].shape[0],
            },
            "attention_levels": tuple(sorted(attention)),
            "codes": codebook(source).shape,
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"these are not the weights of a VQGAN codec: {error} is missing or misshapen"
        ) from error
