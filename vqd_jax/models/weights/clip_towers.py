"""Converts both towers of a CLIP and their projections, with the names of OpenAI or Hugging Face,
to parameters of `models.clip`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params
from vqd_jax.core.text_files import read_json, shown
from vqd_jax.models.clip import ClipCaption, ClipImage
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.weights import clip
from vqd_jax.models.weights.rules import Rule, conv, convert, linear, norm_rules, numbered

DROP = [
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
    r"(text|vision)_model\.embeddings\.position_ids",
]
_BLOCK = r"(?:vision_model\.encoder\.layers|visual\.transformer\.resblocks)\.(\d+)\."
_PATCHES = r"vision_model\.embeddings\.patch_embedding\.weight|visual\.conv1\.weight"
_POSITIONS = r"vision_model\.embeddings\.position_embedding\.weight|visual\.positional_embedding"
RULES = [
    *(dataclasses.replace(rule, target=f"caption/tower/{rule.target}") for rule in clip.RULES),
    Rule(source=r"text_projection\.weight", target="caption/projection/kernel", transform=linear),
    Rule(source=r"text_projection", target="caption/projection/kernel"),
    Rule(source=_PATCHES, target="image/patches/kernel", transform=conv),
    Rule(
        source=r"vision_model\.embeddings\.class_embedding|visual\.class_embedding",
        target="image/class_embedding",
    ),
    Rule(source=_POSITIONS, target="image/position_embedding"),
    *clip.block_rules(_BLOCK, "image/"),
    *norm_rules(r"(?:vision_model\.pre_layrnorm|visual\.ln_pre)", "image/norm_in"),
    *norm_rules(r"(?:vision_model\.post_layernorm|visual\.ln_post)", "image/norm"),
    Rule(source=r"visual_projection\.weight", target="image/projection/kernel", transform=linear),
    Rule(source=r"visual\.proj", target="image/projection/kernel"),
]


def load_clip(folder: str | Path) -> tuple[ClipImage, ClipCaption, Params]:
    """Networks and parameters {"image": ..., "caption": ...}, float32, from a folder or file that
    `clip.read_clip` accepts.

    UserError unless it holds a CLIP with a vision transformer and QuickGELU.
    """
    _check_settings(Path(folder).expanduser() / "config.json")
    source = clip.read_clip(folder)
    image, caption = networks(source)
    pixels = jax.ShapeDtypeStruct((1, image.size, image.size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, caption.tower.length), jnp.int32)
    shapes = lambda network, x: jax.eval_shape(network.init, root_key(0), x)["params"]
    target = {"image": shapes(image, pixels), "caption": shapes(caption, ids)}
    return (
        image,
        caption,
        convert(source, RULES, target, drop=DROP, name=f"the CLIP weights in {folder}"),
    )


def networks(source: Mapping[str, np.ndarray]) -> tuple[ClipImage, ClipCaption]:
    """Networks of the sizes that the shapes of the arrays imply."""
    tower = ClipText(**clip.sizes(source))
    patches, positions, projection = (
        clip.shape_of(source, p)
        for p in (_PATCHES, _POSITIONS, r"visual_projection\.weight|visual\.proj")
    )
    if [len(s or ()) for s in (patches, positions, projection)] != [4, 2, 2]:
        raise UserError(
            "these are not the weights of a CLIP with a vision transformer: its patches, "
            "positions or projection are missing"
        )
    width, patch = patches[0], patches[-1]
    embedding = projection[0 if "visual_projection.weight" in source else 1]
    image = ClipImage(
        size=patch * round((positions[0] - 1) ** 0.5),
        patch=patch,
        width=width,
        heads=clip.heads(width),
        embedding=embedding,
        layers=numbered(_BLOCK, source),
    )
    return image, ClipCaption(tower, embedding)


def _check_settings(file: Path) -> None:
    """Checks the activation and the number of heads, which the shapes do not determine, in Hugging
    Face's settings beside the weights, if there are any.
    """
    if not file.is_file():
        return
    settings = read_json(file)
    try:
        towers = {name: dict(settings.get(name) or {}) for name in ("text_config", "vision_config")}
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as the settings of a CLIP ({error})") from error
    for name, tower in towers.items():
        if tower.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise UserError(
                f"{file}: {name}.hidden_act is {shown(tower['hidden_act'])}; only OpenAI's "
                "quick_gelu is supported"
            )
        width, heads = tower.get("hidden_size"), tower.get("num_attention_heads")
        if isinstance(width, int) and heads not in (None, clip.heads(width)):
            raise UserError(
                f"{file}: {name}.num_attention_heads is {shown(heads)}; only {clip.heads(width)}, "
                "of 64 features each, are supported"
            )
