"""What the page and its JSON may ask of a model, and what they hear while it is drawn; knows
neither HTTP nor the queue.
"""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import png_file
from vqd_jax.data.packed import png
from vqd_jax.inference import pipeline, request
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.inference.request import GenerationRequest

PICTURES = 16  # at most, of one request: they are computed together
BLENDED = 8  # prompts in one, at most: each is another pass through the network
GUIDANCE = 50.0  # at most: beyond, everything is the likeliest code
TEMPERATURE = 10.0
# of requests whose compiled programs are kept, of some 10 MB each: or different requests would fill
# the memory
KINDS = 16
EXAMPLE = "a twitter style emoji of a crab"
SAMPLERS = ("ancestral", "counts", "remask", "released_fast", "prior_rule")


def about(model: TextToImage, workdir: str, weights: str) -> dict[str, Any]:
    """What a page has to know of the model: its settings, which of them can be chosen, and the
    limits.
    """
    own = pipeline.fixed_sampling(model.stage)
    diffusion = own.get("sampler") != "autoregressive"
    kind = model.config.condition.kind
    example = EXAMPLE if model.config.data.source == "emoji" else ""
    return {
        "name": Path(workdir).resolve().name,
        "model": weights,
        "kind": kind,
        "size": model.config.data.image_size,
        "example": {"text": example, "class": "0", "none": ""}[kind],
        "sampling": dict(model.config.sampling),
        "samplers": [own["sampler"]] if own else list(SAMPLERS),
        "calls": model.process.T if diffusion else own["calls"],
        "pictures": PICTURES,
        "edits": diffusion,
    }


def read(model: TextToImage, fields: Any) -> GenerationRequest:
    """The recipe of a request's JSON, its picture brought to the model's size; UserError for what
    is not accepted.
    """
    asked = request.read(model, fields, most=PICTURES)
    for blend in (pipeline.split_prompt(prompt) for prompt in asked.prompts if prompt):
        if len(blend) > BLENDED:
            raise UserError(f"at most {BLENDED} prompts are blended in one, got {len(blend)}")
        for text, weight in blend:
            request.number(f"the weight of {text!r:.40}", weight, 0.0, -GUIDANCE, GUIDANCE)
    for name, low, high in (("guidance", -GUIDANCE, GUIDANCE), ("temperature", 0.0, TEMPERATURE)):
        if name in asked.settings:
            request.number(name, asked.settings[name], 0.0, low, high)
    return asked


def draw(model: TextToImage, asked: GenerationRequest, weights: str) -> Iterator[dict[str, Any]]:
    """An event after each network call: "call" of "calls", "seconds" so far, and the "pictures" as
    they are, data URLs of PNG files.

    The last event is "done": each of its pictures carries its recipe, as `vqd sample --like` reads
    it.
    """
    pipeline.forget_programs(KINDS)
    calls, began, images = request.calls(model, asked), time.perf_counter(), None
    for call, images in enumerate(request.watch(model, asked), 1):  # noqa: B007
        yield {
            "call": call,
            "calls": calls,
            "seconds": time.perf_counter() - began,
            "pictures": [_url(png(image)) for image in images],
        }
    files = [
        png_file(image, request.metadata(model, asked, weights, picture=i))
        for i, image in enumerate(images)
    ]
    yield {
        "done": True,
        "call": calls,
        "calls": calls,
        "seconds": time.perf_counter() - began,
        "pictures": [_url(file) for file in files],
    }


def _url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()
