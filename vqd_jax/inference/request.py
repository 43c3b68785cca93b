"""Generation requests, as a PNG file or a client carries them: the same request and the same model
give the same pixels.

Fields of the JSON: "prompts", "num" (images of each), "seed", "batch", "negative_prompt", the keys
of `config.sampling` and options of the sampler; to edit an image also "init_image" and "mask" (PNG
files in base64; white is repainted), "extend" (pixels to add at the left, top, right and bottom)
and "strength". A file also has "model", the SHA-256 of the weights, and "picture", the index of its
image if it shows one of several.
"""

import base64
import binascii
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vqd_jax.core import png
from vqd_jax.core.errors import UserError
from vqd_jax.data.image_bytes import LARGE, LARGEST, decode_mask, encode_png
from vqd_jax.inference import inpaint
from vqd_jax.inference.inpaint import EditImage
from vqd_jax.inference.model import check_names
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages.token_stage import AnySampler

KEY = "vqd_jax"  # of the text in a PNG file
BATCH = 16  # images computed at once
MAX_IMAGES = 1_000_000
SEEDS = 2**32
MAX_FLOAT = sys.float_info.max
# How the model was loaded, for people who read a file; "model" alone identifies it.
LOADING = ("plan", "stage", "checkpoint", "adapter", "adapter_scale")
# beside settings
FIELDS = ("prompts", "num", "seed", "batch", "init_image", "mask", "extend", "strength")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """Attributes:
    prompts: texts or classes; one empty prompt for a model without a condition.
    num: images of each prompt.
    batch: images computed at once on each device; it changes the last bits of images.
    settings: keyword arguments of `TextToImage.__call__`.
    edit: an image to change, instead of starting from noise.
    strength: the edit starts at the time strength * T.
    """

    prompts: tuple[str, ...]
    num: int = 1
    seed: int = 0
    batch: int = BATCH
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    edit: EditImage | None = None
    strength: float = 1.0

    @property
    def image_prompts(self) -> list[str]:
        """The prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.num)]


def generate(model: TextToImage, request: GenerationRequest) -> UInt8[np.ndarray, "b H W 3"]:
    """The images, all of the first prompt first."""
    prompts = request.image_prompts
    if request.edit:
        return inpaint.edit(
            model,
            request.edit,
            prompts,
            seed=request.seed,
            strength=request.strength,
            **request.settings,
        )
    images = []
    batch = min(request.batch, len(prompts))
    with bar(len(prompts), description="sampling", unit="image") as progress:
        for made in model.batches(prompts, batch, seed=request.seed, **request.settings):
            images.append(made)
            progress.update(len(made))
    return np.concatenate(images)


def watch(model: TextToImage, request: GenerationRequest) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """The images of a single batch after each network call; the last ones are those of `generate`,
    bit for bit.
    """
    prompts = request.image_prompts
    if request.edit:
        yield from inpaint.watch(
            model,
            request.edit,
            prompts,
            seed=request.seed,
            strength=request.strength,
            **request.settings,
        )
        return
    for _, images in model.watch(prompts, seed=request.seed, **request.settings):
        yield images


def calls(model: TextToImage, request: GenerationRequest) -> int:
    """The number of network calls of `watch`."""
    sampler, _ = _sampling(model, request)
    windows = inpaint.window_count(model, request.edit) if request.edit else 1
    return windows * model.stage.calls(sampler, model.t_start(request.strength))


def metadata(
    model: TextToImage,
    request: GenerationRequest,
    weights: str,
    *,
    picture: int | None = None,
    **more: Any,
) -> dict[str, str]:
    """The text of a PNG file that shows all images of a request, or the one with index `picture`.

    `weights` is `model.digest`. Planned counts are written as numbers, since the workdir may have
    another plan later.
    """
    sampler, _ = _sampling(model, request)
    planned = {"counts": sampler.counts} if isinstance(sampler, Counts) else {}
    fields = {
        **model.config.sampling,
        **request.settings,
        **planned,
        **more,
        "seed": request.seed,
        "prompts": request.prompts,
        "num": request.num,
        "batch": request.batch,
        "model": weights,
    }
    if request.edit:
        mask = request.edit.mask.astype(np.uint8) * 255
        files = {"init_image": request.edit.image, "mask": mask}
        for name, pixels in files.items():
            fields[name] = base64.b64encode(encode_png(pixels)).decode()
        fields["strength"] = request.strength
    if picture is not None:
        fields["picture"] = picture
    return {KEY: json.dumps(fields)}


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. UserError if it is not valid or names a field twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_fields)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not valid JSON") from error


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise UserError(f"the field {name!r:.80} is given twice")
        fields[name] = value
    return fields


def parse(model: TextToImage, fields: Any, *, most: int | None = None) -> GenerationRequest:
    """The request of JSON fields. UserError for fields that this model does not accept.

    `most` is for clients of a server: it bounds the number of images, and an image to edit
    becomes a square of the model's size.
    """
    if not isinstance(fields, dict):
        raise UserError(
            'a request is a JSON object, such as {"prompts": ["a twitter style emoji of a crab"], '
            '"seed": 1}'
        )
    check_names(model.config, fields, beside=FIELDS)
    settings = dict(fields)
    prompts = settings.pop("prompts", [])
    is_list = isinstance(prompts, (list, tuple))
    if not is_list or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts must be a list of texts, got {prompts!r:.80}")
    if model.config.condition.kind == "none":
        prompts = [*filter(None, prompts)]
    integers = {
        name: check_number(name, settings.pop(name, default), default, low, high)
        for name, default, low, high in (
            ("num", 1, 1, MAX_IMAGES),
            ("seed", 0, 0, SEEDS - 1),
            ("batch", BATCH, 1, MAX_IMAGES),
        )
    }
    total = len(prompts) * integers["num"]
    if most and total > min(most, integers["batch"]):
        raise UserError(
            f"at most {min(most, integers['batch'])} images are drawn at once, got {total}"
        )
    strength = check_number("strength", settings.pop("strength", 1.0), 1.0, 0, 1)
    files = {name: _file_bytes(name, settings.pop(name, None)) for name in ("init_image", "mask")}
    edit = None
    if files["init_image"]:
        largest = LARGE if most else LARGEST
        image = inpaint.decode_image(files["init_image"], "the init_image", largest)
        mask = files["mask"] and inpaint.decode_image(
            files["mask"], "the mask", largest, decode_mask
        )
        extension = _extension(settings.pop("extend", None), model.square.size)
        edit = inpaint.make_edit_image(image, mask, extension, model.square, large=not most)
    elif files["mask"] or strength != 1 or settings.pop("extend", None):
        raise UserError("mask, extend and strength are for editing an image: give it as init_image")
    for name, default in {**model.config.sampling, "negative_prompt": ""}.items():
        if name in settings:
            settings[name] = check_number(name, settings[name], default)
    if not settings.get("negative_prompt"):
        settings.pop("negative_prompt", None)
    request = GenerationRequest(
        prompts=tuple(model.prompts(prompts)),
        **integers,
        settings=settings,
        edit=edit,
        strength=strength,
    )
    check(model, request)
    return request


def read_file(model: TextToImage, path: str, weights: str) -> tuple[GenerationRequest, int | None]:
    """The request in a PNG file, and the index of the image that the file shows; None for all."""
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}")
    try:
        text = png.text(Path(path).read_bytes(), KEY)
    except (OSError, ValueError):
        text = None
    if text is None:
        raise UserError(
            f"{path} holds no generation request: it is not a PNG file of vqd_jax, or another "
            "program has saved it again"
        )
    try:
        fields = from_json(text)
        if not isinstance(fields, dict):
            raise UserError("its text is not a request")
        model_digest, picture = fields.pop("model", weights), fields.pop("picture", None)
        if model_digest != weights:
            raise UserError("it was made by another model, or with another adapter or stage")
        given = {name: value for name, value in fields.items() if name not in LOADING}
        request = parse(model, given)
        if picture is not None:
            last = len(request.image_prompts) - 1
            picture = check_number("picture", picture, 0, 0, last)
        return request, picture
    except UserError as error:
        raise UserError(f"{path} cannot be reproduced: {error}") from error


def check_number(
    name: str, value: Any, like: Any, low: int | float = -MAX_FLOAT, high: int | float = MAX_FLOAT
) -> Any:
    """The value, if it has the type of `like` and, if it is a number, is finite and in low..high.
    UserError otherwise.
    """
    types = (int, float) if isinstance(like, float) else type(like)
    names = {int: "a whole number", bool: "true or false", str: "a text"}
    kind = names.get(type(like), "a number")
    if not isinstance(value, types) or isinstance(value, bool) != isinstance(like, bool):
        raise UserError(f"{name} must be {kind}, got {value!r:.80}")
    if isinstance(value, (int, float)) and not low <= value <= high:  # also for NaN
        bounds = f" in {low:g}..{high:g}" if low > -MAX_FLOAT else ""
        raise UserError(f"{name} must be {kind}{bounds}, got {value!r:.80}")
    return float(value) if isinstance(like, float) else value


def _extension(sides: Any, size: int) -> list[int] | None:
    """Pixels to add to an image at its left, top, right and bottom, each at most the model's
    size; None without any.
    """
    if sides is None:
        return None
    if not isinstance(sides, list) or len(sides) != 4:
        raise UserError(
            f"extend must be four numbers of pixels, left, top, right, bottom, got {sides!r:.80}"
        )
    pixels = [check_number("each number of extend", side, 0, 0, size) for side in sides]
    return pixels if any(pixels) else None


def _file_bytes(name: str, text: Any) -> bytes | None:
    """The bytes of a file in base64 or in a data URL."""
    if text in (None, ""):
        return None
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (AttributeError, TypeError, binascii.Error, ValueError) as error:
        raise UserError(f"{name} must be an image file in base64") from error


def check(model: TextToImage, request: GenerationRequest) -> None:
    """UserError, before anything is computed, for settings, prompts or an image to edit that this
    model does not accept.
    """
    check_names(model.config, request.settings)
    _, guidance_config = _sampling(model, request)
    calls(model, request)
    negative_prompt = request.settings.get("negative_prompt", "")
    model.conditions(request.prompts, negative_prompt, guidance_config)
    if request.edit:
        inpaint.check_size(model, request.edit)


def _sampling(model: TextToImage, request: GenerationRequest) -> tuple[AnySampler, GuidanceConfig]:
    settings = {k: v for k, v in request.settings.items() if k != "negative_prompt"}
    return model.settings(t_start=model.t_start(request.strength), **settings)
