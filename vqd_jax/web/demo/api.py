"""The JSON API without HTTP and queue: parses requests and yields the events of a generation."""

import base64
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import png_bytes
from vqd_jax.core.shipped import model_path
from vqd_jax.core.text_files import read_text
from vqd_jax.data.image_bytes import encode_png
from vqd_jax.inference import request as generation
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.inference.prompts import split_prompt
from vqd_jax.inference.request import GenerationRequest
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages import sampling

MAX_IMAGES = 16  # of a request, which is one batch
MAX_BLENDED = 8  # prompts combined in one; each costs another pass through the network
MAX_GUIDANCE = 50.0  # beyond it, only the likeliest code is ever drawn
MAX_TEMPERATURE = 10.0
CAPTIONS = 2**20  # bytes of the captions that are suggested
MAX_PROGRAMS = 16  # compiled samplers kept in memory, about 10 MB each
EXAMPLES = (  # of a model of emoji; others have those of their previews
    "a twitter style emoji of a crab",
    "a google style emoji of a robot",
    "an openmoji style emoji of a mushroom",
    "a google style emoji of a ghost",
)
SAMPLERS = ("ancestral", "counts", "remask", "released_fast", "prior_rule")


def model_info(model: TextToImage, workdir: str, weights: str) -> dict[str, Any]:
    """Name, default settings, choices and limits of a model; `weights` is its checksum."""
    fixed = model.stage.fixed_sampling
    diffusion = fixed.get("sampler") != "autoregressive"
    kind = model.config.condition.kind
    examples = EXAMPLES if model.config.data.source == "emoji" else model.config.preview.prompts
    return {
        "name": Path(workdir).resolve().name,
        "model": weights,
        "kind": kind,
        "size": model.config.data.image_size,
        "examples": list(examples) if kind == "text" else [],
        "captions": _captions(workdir) if kind == "text" else [],
        "sampling": dict(model.config.sampling),
        "samplers": list(SAMPLERS) if diffusion else [fixed["sampler"]],
        "calls": model.process.T if diffusion else fixed["calls"],
        "pictures": MAX_IMAGES,
        "edits": diffusion,
    }


def _captions(workdir: str) -> list[str]:
    """The training captions in a workdir, or in the shipped model of that name; [] without them."""
    folder = model_path(workdir)
    if not os.path.isdir(folder) or not (path := Workdir(folder).captions).is_file():
        return []
    try:
        return read_text(path, CAPTIONS).strip().split("\n")
    except UserError as error:
        print(f"there are no suggestions: {error}", flush=True)
        return []


def parse_request(model: TextToImage, fields: Any) -> GenerationRequest:
    """The generation request of JSON fields, its initial image resized to the model. UserError for
    values that are not accepted, in the words of the page.
    """
    try:
        request = generation.parse(model, fields, most=MAX_IMAGES)
        _check_limits(request)
    except UserError as error:
        raise UserError(_page_words(str(error))) from error
    return request


def _check_limits(request: GenerationRequest) -> None:
    for blend in (split_prompt(prompt) for prompt in request.prompts if prompt):
        if len(blend) > MAX_BLENDED:
            raise UserError(f"at most {MAX_BLENDED} prompts are blended in one, got {len(blend)}")
        for text, weight in blend:
            name = f"the weight of {text!r:.40}"
            generation.check_number(name, weight, 0.0, -MAX_GUIDANCE, MAX_GUIDANCE)
    for name, low, high in (
        ("guidance", -MAX_GUIDANCE, MAX_GUIDANCE),
        ("temperature", 0.0, MAX_TEMPERATURE),
    ):
        if name in request.settings:
            generation.check_number(name, request.settings[name], 0.0, low, high)


def _page_words(message: str) -> str:
    """Replaces "calls", the key of the config and the flag, by "steps", as the page names them."""
    return re.sub(r"^calls\b|(?<=\d )calls\b", "steps", message)


def draw(model: TextToImage, request: GenerationRequest, weights: str) -> Iterator[dict[str, Any]]:
    """Yields an event after each network call: "call" of "calls", "seconds" since the start, and
    "pictures", the current images as data URLs of PNG files.

    The last event has "done", and its files store the generation request for `vqd sample --like`.
    """
    sampling.limit_compiled_samplers(MAX_PROGRAMS)
    calls = generation.calls(model, request)
    start = time.perf_counter()
    images = None
    for call, images in enumerate(generation.watch(model, request), 1):  # noqa: B007
        yield {
            "call": call,
            "calls": calls,
            "seconds": time.perf_counter() - start,
            "pictures": [_data_url(encode_png(image)) for image in images],
        }
    files = [
        png_bytes(image, generation.metadata(model, request, weights, picture=i))
        for i, image in enumerate(images)
    ]
    yield {
        "done": True,
        "call": calls,
        "calls": calls,
        "seconds": time.perf_counter() - start,
        "pictures": [_data_url(file) for file in files],
    }


def _data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()
