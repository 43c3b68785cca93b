"""Sampling step by step: the states, what changed, the confidence of the network, and the words it
attends to.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.inference.prompts import split_prompt
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.base import call_times
from vqd_jax.stages import jitted, sampling


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt, and how much each position attends to its tokens: the mean over layers,
    heads and calls.
    """

    text: str
    attention: Float[np.ndarray, " l"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Attributes:
    k: the number of codes; in the states, k is [MASK].
    groups: the number of tokens at each position; all tokens of a group follow each other.
    states: the tokens before the first call and after each call.
    images: the decoded states, grey where masked.
    times: the timestep given to the network at each call.
    confidence: at each call, the probability of each token's likeliest code.
    words: those of each prompt, and the tokens around them. At each position their attention sums
      to one. Empty for models without text.
    """

    k: int
    groups: int
    states: Int[np.ndarray, "calls_plus_1 n"]
    images: UInt8[np.ndarray, "calls_plus_1 H W 3"]
    times: Int[np.ndarray, " calls"]
    confidence: Float[np.ndarray, "calls n"]
    words: tuple[tuple[Word, ...], ...]


def explain(
    model: TextToImage, prompt: str, *, seed: int = 0, negative_prompt: str = "", **settings: Any
) -> Explanation:
    """Explains the image of `model([prompt], seed=…)`, which the same program computes here."""
    process = model.process
    sampler, guidance_config = model.settings(**settings)
    conditions, scales = model.conditions([prompt], negative_prompt, guidance_config)
    times = call_times(sampler, process, model.stage.tokens)
    keys = sampling.image_keys(seed, 0, 1)
    states = [np.asarray(sampler.start(keys, process, model.stage.tokens))]
    images, confidence, attention = [model.decode_partial(states[0])[0]], [], []
    watched = model.watch([prompt], seed=seed, negative_prompt=negative_prompt, **settings)
    with bar(len(times), description="explaining", unit="call") as progress:
        for time, (tokens, image) in zip(times, watched, strict=True):
            likeliest, maps = jitted.attention(
                model.stage,
                model.weights,
                conditions,
                scales,
                guidance_config=guidance_config,
                z=states[-1],
                time=int(time),
            )
            confidence.append(likeliest[0])
            attention.append(maps)
            states.append(tokens)
            images.append(image[0])
            progress.update()
    words = ()
    if attention[0] is not None:
        mean = np.mean(attention, axis=0)[:, 0]
        words = tuple(
            _words(model, text, ids, weights)
            for (text, _), ids, weights in zip(split_prompt(prompt), conditions.ids[:, 0], mean)
        )
    return Explanation(
        k=process.k,
        groups=model.codec.codebook.groups,
        states=np.concatenate(states),
        images=np.stack(images),
        times=times,
        confidence=np.stack(confidence),
        words=words,
    )


def _words(
    model: TextToImage, text: str, ids: Int[np.ndarray, " m"], attention: Float[np.ndarray, "l m"]
) -> tuple[Word, ...]:
    """The words of a prompt, and the tokens around them that get any attention."""
    words = model.tokenizer.words(text)  # (word, indices of its tokens)
    end = max((i for _, indices in words for i in indices), default=0) + 1
    around = [("(start)", [0]), ("(end)", [end]), ("(padding)", [*range(end + 1, len(ids))])]
    attended = [(name, indices) for name, indices in around if attention[:, indices].any()]
    return tuple(Word(name, attention[:, indices].sum(1)) for name, indices in [*words, *attended])


def single_prompt(prompts: Sequence[str]) -> str:
    """The one prompt to explain. UserError if there are more."""
    if len(prompts) > 1:
        raise UserError(
            "one image is explained at a time: give one --prompt, or one --label, not "
            f"{len(prompts)}"
        )
    return prompts[0]
