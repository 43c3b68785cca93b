"""How pictures are made, as something that a PNG file or a request carries: the same recipe and the
same model give the same pixels.

The fields are those of JSON: "prompts", "num" (pictures of each), "seed", "batch",
"negative_prompt", the keys of `config.sampling` and options of the sampler; of a changed picture
"init_image" and "mask" (PNG in base64; white is repainted) and "strength". A file has "model", the
sum of the weights, and of one picture out of several "picture", its number from 0, too.
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
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_bytes import LARGE, LARGEST, encode_png
from vqd_jax.inference import inpaint
from vqd_jax.inference.inpaint import EditImage
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import call_times
from vqd_jax.samplers.counts import Counts

KEY = "vqd_jax"  # of the text in a PNG file
BATCH = 16  # pictures computed at once
MOST = 1_000_000  # pictures
SEEDS = 2**32
FINITE = sys.float_info.max  # the largest number
LOADING = (
    "plan",
    "stage",
    "adapter",
    "adapter_scale",
)  # how the model was loaded: for who reads the file, the sum says it all


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """`num` pictures of each prompt, computed in batches; `settings` are keywords of `TextToImage`.
    With a `canvas` it is painted instead, beginning at the time `strength` * T.
    """

    prompts: tuple[str, ...]
    num: int = 1
    seed: int = 0
    batch: int = BATCH
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    canvas: EditImage | None = None
    strength: float = 1.0

    @property
    def wanted(self) -> list[str]:
        """The prompt of each picture."""
        return [prompt for prompt in self.prompts for _ in range(self.num)]


def draw(model: TextToImage, recipe: GenerationRequest) -> UInt8[np.ndarray, "b H W 3"]:
    """The pictures, all those of the first prompt first."""
    wanted = recipe.wanted
    if recipe.canvas:
        return inpaint.edit(
            model,
            recipe.canvas,
            wanted,
            seed=recipe.seed,
            strength=recipe.strength,
            **recipe.settings,
        )
    images = []
    with bar(len(wanted), description="sampling", unit="picture") as progress:
        for made in model.batches(
            wanted, min(recipe.batch, len(wanted)), seed=recipe.seed, **recipe.settings
        ):
            images.append(made)
            progress.update(len(made))
    return np.concatenate(images)


def watch(model: TextToImage, recipe: GenerationRequest) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """The pictures of a single batch after each network call; the last ones are those of `draw`,
    bit for bit.
    """
    if recipe.canvas:
        yield from inpaint.watch(
            model,
            recipe.canvas,
            recipe.wanted,
            seed=recipe.seed,
            strength=recipe.strength,
            **recipe.settings,
        )
    else:
        yield from (
            images for _, images in model.watch(recipe.wanted, seed=recipe.seed, **recipe.settings)
        )


def calls(model: TextToImage, recipe: GenerationRequest) -> int:
    """How many network calls `watch` shows, of a canvas of the model's size."""
    sampler, _ = _sampling(model, recipe)
    n = (model.config.data.image_size // model.codec.model.downsampling) ** 2
    return (
        n
        if isinstance(sampler, AutoregressiveSampler)
        else len(call_times(sampler, model.process, n, model.t_start(recipe.strength)))
    )


def metadata(
    model: TextToImage,
    recipe: GenerationRequest,
    weights: str,
    *,
    picture: int | None = None,
    **more: Any,
) -> dict[str, str]:
    """The text of a PNG file with all the pictures, or with the one of that number. `weights` is
    the sum of the model's.

    Counts of tokens are written as they are: the workdir may have another plan later.
    """
    sampler, _ = _sampling(model, recipe)
    planned = {"counts": sampler.counts} if isinstance(sampler, Counts) else {}
    fields = {
        **model.config.sampling,
        **recipe.settings,
        **planned,
        **more,
        "seed": recipe.seed,
        "prompts": recipe.prompts,
        "num": recipe.num,
        "batch": recipe.batch,
        "model": weights,
    }
    if recipe.canvas:
        image, mask = recipe.canvas.image, recipe.canvas.repaint.astype(np.uint8) * 255
        encoded = {
            name: base64.b64encode(encode_png(pixels)).decode()
            for name, pixels in (("init_image", image), ("mask", mask))
        }
        fields |= encoded | {"strength": recipe.strength}
    return {KEY: json.dumps(fields | ({} if picture is None else {"picture": picture}))}


def read(model: TextToImage, fields: Any, *, most: int | None = None) -> GenerationRequest:
    """The recipe of the fields that a file or a request has; UserError where they are not those of
    this model.

    With `most` they are a request's: at most that many pictures, and one to be changed is brought
    to the model's size.
    """
    if not isinstance(fields, dict):
        raise UserError(
            'a recipe is a JSON object, such as {"prompts": ["a twitter style emoji of a crab"], '
            '"seed": 1}'
        )
    given = dict(fields)
    prompts = given.pop("prompts", [])
    if not isinstance(prompts, (list, tuple)) or not all(
        isinstance(prompt, str) for prompt in prompts
    ):
        raise UserError(f"prompts must be a list of texts, got {prompts!r:.80}")
    if model.config.condition.kind == "none":
        prompts = [*filter(None, prompts)]
    numbers = {
        name: number(name, given.pop(name, default), default, low, high)
        for name, default, low, high in (
            ("num", 1, 1, MOST),
            ("seed", 0, 0, SEEDS - 1),
            ("batch", BATCH, 1, MOST),
        )
    }
    if most and len(prompts) * numbers["num"] > min(most, numbers["batch"]):
        raise UserError(
            f"at most {min(most, numbers['batch'])} pictures are drawn at once, got "
            f"{len(prompts) * numbers['num']}"
        )
    strength = number("strength", given.pop("strength", 1.0), 1.0, 0, 1)
    files = {name: _content(name, given.pop(name, None)) for name in ("init_image", "mask")}
    canvas = None
    if files["init_image"]:
        image, mask = (
            content and inpaint.decoded(content, f"the {name}", LARGE if most else LARGEST)
            for name, content in files.items()
        )
        size = model.config.data.image_size
        canvas = inpaint.canvas(
            image.resize((size, size), Image.Resampling.BICUBIC) if most else image, mask, [], size
        )
    elif files["mask"] or strength != 1:
        raise UserError("a mask and a strength are for changing a picture: give it as init_image")
    for name, default in {**model.config.sampling, "negative_prompt": ""}.items():
        if name in given:
            given[name] = number(name, given[name], default)
    if not given.get("negative_prompt"):
        given.pop("negative_prompt", None)
    recipe = GenerationRequest(
        prompts=tuple(model.prompts(prompts)),
        **numbers,
        settings=given,
        canvas=canvas,
        strength=strength,
    )
    check(model, recipe)
    return recipe


def read_file(model: TextToImage, path: str, weights: str) -> tuple[GenerationRequest, int | None]:
    """The recipe in a PNG file, and which of its pictures the file shows; None for all of them."""
    if not Path(path).is_file():
        raise UserError(f"there is no picture {path}")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()  # or text after the pixels is not seen
            fields = json.loads(image.text[KEY])
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise UserError(
            f"{path} does not say how it was made: it is no PNG of vqd_jax, or a program has "
            "saved it again"
        ) from error
    try:
        if not isinstance(fields, dict):
            raise UserError("what it says is no recipe")
        model_of, picture = fields.pop("model", weights), fields.pop("picture", None)
        if model_of != weights:
            raise UserError("it was drawn by another model, or with another adapter or stage")
        recipe = read(model, {name: value for name, value in fields.items() if name not in LOADING})
        return recipe, picture if picture is None else number(
            "picture", picture, 0, 0, len(recipe.prompts) * recipe.num - 1
        )
    except UserError as error:
        raise UserError(f"{path} cannot be made again: {error}") from error


def number(
    name: str, value: Any, like: Any, low: int | float = -FINITE, high: int | float = FINITE
) -> Any:
    """The value, if it is of the kind of `like` and, if that is a number, finite and in low..high;
    or a sentence.
    """
    kinds = (int, float) if isinstance(like, float) else type(like)
    kind = {int: "a whole number", bool: "true or false", str: "a text"}.get(type(like), "a number")
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(like, bool):
        raise UserError(f"{name} must be {kind}, got {value!r:.80}")
    if isinstance(value, (int, float)) and not low <= value <= high:  # as of NaN
        raise UserError(
            f"{name} must be {kind}"
            + (f" in {low:g}..{high:g}" if low > -FINITE else "")
            + f", got {value!r:.80}"
        )
    return float(value) if isinstance(like, float) else value


def _content(name: str, text: Any) -> bytes | None:
    """The bytes of a file in base64, or in a data URL."""
    if text in (None, ""):
        return None
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (AttributeError, TypeError, binascii.Error, ValueError) as error:
        raise UserError(f"the {name} must be a picture file in base64") from error


def check(model: TextToImage, recipe: GenerationRequest) -> None:
    """UserError, before anything is computed, for settings or prompts that this model does not
    take.
    """
    _, guidance_config = _sampling(model, recipe)
    calls(model, recipe)
    model.conditions(recipe.prompts, recipe.settings.get("negative_prompt", ""), guidance_config)
    if recipe.canvas:
        inpaint.check(model, recipe.canvas)


def _sampling(model: TextToImage, recipe: GenerationRequest) -> tuple[Any, Any]:
    settings = {name: value for name, value in recipe.settings.items() if name != "negative_prompt"}
    return model.settings(t_start=model.t_start(recipe.strength), **settings)
