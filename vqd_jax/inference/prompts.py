"""Prompts: their syntax ("a cat AND a dog :0.5"), their limits, and the rows of text ids that a
model is conditioned on.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError, warn_once
from vqd_jax.data.text.load import Tokenizer, unread
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages.token_stage import Conditioning

MAX_PROMPT = 1_000  # characters; the text encoders read far fewer


def check_prompt(prompt: str) -> str:
    """The prompt. UserError if it is empty or too long."""
    if not prompt.strip():
        raise UserError("a prompt is empty: write what the image should show")
    _check_length(prompt)
    return prompt


def _check_length(prompt: str) -> None:
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"a prompt has {len(prompt):,} characters, at most {MAX_PROMPT:,} are accepted"
        )


def escape_prompt(caption: str) -> str:
    """A caption of a data set as a plain prompt: cut to the accepted length, and without AND, which
    would blend.
    """
    return re.sub(r"\bAND\b", "and", caption)[:MAX_PROMPT]


def split_prompt(prompt: str) -> list[tuple[str, float]]:
    """The texts of a blend with their weights: "a cat AND a dog :0.5" is [("a cat", 1.0), ("a dog",
    0.5)].

    A prompt in capitals, "SALT AND PEPPER", is no blend, and the end of "10:30" is no weight.
    """
    blend = []
    parts = re.split(r"\bAND\b", prompt)
    if not any(c.islower() for part in parts for c in part):
        parts = [prompt]
    for part in parts:
        text, weight = re.fullmatch(
            r"(.*?)(?:(?<!\d):\s*(-?\d+(?:\.\d+)?))?\s*", part, re.DOTALL
        ).groups()
        blend.append((check_prompt(text.strip()), float(weight or 1)))
    if len(blend) == 1:
        return [(prompt, 1.0)]
    if not sum(weight for _, weight in blend) > 0:
        raise UserError(f"the weights of a blend must have a positive sum, got {prompt!r}")
    return blend


def requested_prompts(
    kind: str, classes: int, prompts: Sequence[str], *, labels: bool = False
) -> list[str]:
    """The prompts of a request to a model of that kind ("text", "class" or "none", which takes one
    empty prompt). UserError if prompts are missing or of the wrong kind; `labels` says that they
    are classes.
    """
    if kind == "none":
        if prompts:
            raise UserError("this model has no condition: leave out --prompt and --label")
        return [""]
    if labels and kind != "class":
        raise UserError("--label is for class models, this one draws from text: use --prompt")
    if not prompts:
        if kind == "text":
            example = '--prompt="a google style emoji of a red apple"'
            raise UserError(f"--prompt is missing, for example {example}")
        raise UserError(f"--label is missing: a class from 0 to {classes - 1}")
    return [*prompts]


def conditioning(
    kind: str,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    negative_prompt: str,
    guidance_config: GuidanceConfig,
) -> tuple[Conditioning, Float[np.ndarray, "p b"]]:
    """The texts, or classes, of each image, and the guidance scales of its p prompts.

    Blends with fewer prompts than others are padded with prompts of scale 0.
    """
    guidance = guidance_config.guidance
    if negative_prompt and guidance == 1:
        raise UserError(
            "a negative prompt acts through guidance, and a guidance of 1 is none: choose another "
            "scale, such as 2"
        )
    _check_length(negative_prompt)
    if kind == "none":
        if guidance != 1:
            raise UserError(f"this model has no condition, so guidance must be 1, got {guidance:g}")
        blends = [[(prompt, 1.0)] for prompt in prompts]
    else:
        blends = [split_prompt(check_prompt(prompt)) for prompt in prompts]
    most = max(map(len, blends))
    padded = [blend + [(blend[0][0], 0.0)] * (most - len(blend)) for blend in blends]
    texts = [[text for text, _ in row] for row in zip(*padded)]
    weights = [[weight for _, weight in row] for row in zip(*padded)]
    dropped = not negative_prompt and (guidance_config.null == "learned" or kind != "text")
    negative = texts[0] if dropped else [negative_prompt] * len(blends)
    _tell_unread(tokenizer, [text for row in [*texts, negative] for text in row])
    ids = np.stack([tokenizer(row) for row in [*texts, negative]])
    drop = np.zeros(ids.shape[:2], bool)
    drop[-1] = dropped
    return Conditioning(ids, drop), guidance * np.array(weights, np.float32)


def _tell_unread(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warns of the words that are beyond the length of the tokenizer."""
    for rest in filter(None, unread(tokenizer, list(dict.fromkeys(texts)))):
        warn_once(
            f"a prompt is longer than the {tokenizer.length} tokens that are read, and these words "
            f"have no effect: {rest}"
        )
