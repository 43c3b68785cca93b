"""The shipped model of 64-pixel emoji: its codec, and the colours that it draws."""

import operator

import numpy as np

from helpers import ROOT
from helpers.emoji_set import emoji_cache
from vqd_jax.data.emoji import Emoji
from vqd_jax.data.hues import COLOURS, colour_of
from vqd_jax.eval.reconstruction import psnr
from vqd_jax.inference import pipeline

SHIPPED = ROOT / "pretrained" / "emoji64"


def test_held_out_emoji_come_back_from_their_tokens():
    model = pipeline.load(SHIPPED)
    source = Emoji(cache=str(emoji_cache()), resolution=64)
    held_out = [i for i, record in enumerate(source.records) if record.split == "held_out_cells"]
    images = np.stack([source[i]["image"] for i in held_out[::10]])
    tokens = model.encode(images)
    assert tokens.shape == (len(images), 2 * 8 * 8) and 0 <= tokens.min() <= tokens.max() < 512
    assert len(images) > 30 and psnr(model.decode(tokens), images).mean() > 25


def test_a_thing_has_the_colour_of_its_prompt():
    model = pipeline.load(SHIPPED)
    prompts = [f"a twitter style emoji of a {colour} bottle" for colour in COLOURS]
    drawn = [COLOURS[colour_of(image).index] for image in model(prompts, calls=8, output="np")]
    assert sum(map(operator.eq, drawn, COLOURS)) >= 5, drawn
