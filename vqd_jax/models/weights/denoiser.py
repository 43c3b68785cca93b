"""Converts the denoising transformer, with the names of the released code or diffusers, to
parameters of `models.denoiser.Denoiser`.

| here | released | diffusers Transformer2DModel |
|---|---|---|
| tokens, rows, columns | content_emb.{emb,height_emb,width_emb} | latent_image_embedding.{emb,height_emb,width_emb} |
| blockN/norm1 | blocks.N.ln1 | transformer_blocks.N.norm1 |
| blockN/self_attention | blocks.N.attn1 (attn without text) | transformer_blocks.N.attn1 |
| blockN/norm2, cross_attention | blocks.N.ln1_1, attn2 | transformer_blocks.N.norm2, attn2 |
| blockN/norm3 | blocks.N.ln2 | transformer_blocks.N.norm3 |
| blockN/mlp_in, mlp_out | blocks.N.mlp.{0,2} or {conv1,conv2} | transformer_blocks.N.ff.net.{0.proj,2} |
| norm, head | to_logits.{0,1} | norm_out, out |
"""  # noqa: E501

from collections.abc import Mapping
from typing import Any

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.rules import Rule, conv, layer_rules, linear, norm_rules, numbered

Arrays = dict[str, np.ndarray]
DROP = [r"blocks\.\d+\.attn[12]?\.mask"]


def _fused(source: str, names: tuple[str, ...], target: str) -> list[Rule]:
    """Rules for linear layers that are one fused layer here."""
    join = lambda parts: np.concatenate(parts, axis=-1)
    return [
        rule
        for i, name in enumerate(names)
        for rule in (
            Rule(
                source=rf"{source}\.{name}\.weight",
                target=f"{target}/kernel",
                transform=linear,
                part=str(i),
                join=join,
            ),
            Rule(
                source=rf"{source}\.{name}\.bias", target=f"{target}/bias", part=str(i), join=join
            ),
        )
    ]


def _adaptive(source: str, target: str) -> list[Rule]:
    return [
        Rule(source=rf"{source}\.emb\.weight", target=f"{target}/table/embedding"),
        *layer_rules(rf"{source}\.linear", f"{target}/linear"),
    ]


_N = r"blocks\.(\d+)\."
RULES = [
    Rule(source=r"content_emb\.emb\.weight", target="tokens/embedding"),
    Rule(source=r"content_emb\.height_emb\.weight", target="rows/embedding"),
    Rule(source=r"content_emb\.width_emb\.weight", target="columns/embedding"),
    *_adaptive(_N + "ln1", r"block\1/norm1"),
    *_adaptive(_N + "ln1_1", r"block\1/norm2"),
    *_adaptive(_N + "ln2", r"block\1/norm3"),
    *norm_rules(_N + "ln2", r"block\1/norm3"),
    *_fused(_N + "attn1?", ("query", "key", "value"), r"block\1/self_attention/qkv"),
    *layer_rules(_N + r"attn1?\.proj", r"block\1/self_attention/out"),
    *layer_rules(_N + r"attn2\.query", r"block\1/cross_attention/q"),
    *_fused(_N + "attn2", ("key", "value"), r"block\1/cross_attention/kv"),
    *layer_rules(_N + r"attn2\.proj", r"block\1/cross_attention/out"),
    *layer_rules(_N + r"mlp\.0", r"block\1/mlp_in"),
    *layer_rules(_N + r"mlp\.2", r"block\1/mlp_out"),
    *layer_rules(_N + r"mlp\.conv1", r"block\1/mlp_in", conv),
    *layer_rules(_N + r"mlp\.conv2", r"block\1/mlp_out", conv),
    *norm_rules(r"to_logits\.0", "norm"),
    *layer_rules(r"to_logits\.1", "head"),
]
NAMES = [  # diffusers' name, the released code's
    (r"latent_image_embedding\.", "content_emb."),
    (r"transformer_blocks\.", "blocks."),
    (r"\.norm1\.", ".ln1."),
    (r"\.norm2\.", ".ln1_1."),
    (r"\.norm3\.", ".ln2."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.0."),
    (r"\.ff\.net\.2\.", ".mlp.2."),
    (r"^norm_out\.", "to_logits.0."),
    (r"^out\.", "to_logits.1."),
]


def sizes(source: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `models.denoiser.Denoiser`, k, T and the number of class embeddings, from names and
    shapes, which do not determine the number of heads.
    """
    try:
        states, width = source["content_emb.emb.weight"].shape
        rows, columns = (
            source[f"content_emb.{name}_emb.weight"].shape[0] for name in ("height", "width")
        )
        T = source["blocks.0.ln1.emb.weight"].shape[0] if "blocks.0.ln1.emb.weight" in source else 0
        conv_mlp = "blocks.0.mlp.conv1.weight" in source
        mlp_in = "blocks.0.mlp.conv1.weight" if conv_mlp else "blocks.0.mlp.0.weight"
        ratio = source[mlp_in].shape[0] // width
        layers = numbered(_N, source)
        if min(states - 1, width, rows, columns, ratio) < 1:
            raise ValueError("an array without numbers")
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"these are not the weights of a VQ-Diffusion transformer: {error} is missing or "
            "misshapen"
        ) from error
    classes = source.get("blocks.0.ln2.emb.weight")
    class_rows = 0
    if classes is not None:
        class_rows = classes.shape[0] if classes.ndim else 1
    condition = "none" if classes is None else "class"
    if "blocks.0.attn2.query.weight" in source:
        condition = "text"
    return {
        "denoiser": {
            "layers": layers,
            "width": width,
            "mlp_ratio": ratio,
            "mlp": "conv" if conv_mlp else "fc",
            "time": "learned" if T else "sinusoidal",
        },
        "codes": states - 1,
        "T": T,
        "positions": (rows, columns),
        "condition": condition,
        "class_rows": class_rows,
    }
