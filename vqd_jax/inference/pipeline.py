"""A trained model as a function from prompts to images: `load` and `TextToImage`."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import Images
from vqd_jax.core.shipped import MODEL, model_path
from vqd_jax.data.image_bytes import decode, decode_mask, mask_of, pixels_of
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.inference import inpaint
from vqd_jax.inference.loading import HUB_FILE, StoredModel, in_compute_dtype, read_workdir
from vqd_jax.inference.model import Model, weights_digest
from vqd_jax.runtime.devices import platform
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages import lora_files

# An image to change, or a mask: a file, an image, or its pixels
Picture = str | os.PathLike | Image.Image | np.ndarray
Prompts = str | int | Sequence[str | int]
# After a network call: its number, from 1, and the images as they are then
Callback = Callable[[int, Any], None]
OUTPUTS = ("pil", "np")
HUB = "hf://"
# Files by which folders that are no workdirs are known: those of diffusers, of the hub with a model
# that was exported, and of the hub's cache
OTHER_FOLDERS = ("model_index.json", HUB_FILE, "snapshots")


class TextToImage(Model):
    """A trained model, made by `load`: call it with a prompt.

    The methods that make images share these arguments:

    - prompts: a prompt or several; for class models their numbers or names. "a cat AND a dog :0.5"
      blends two.
    - num: images of each prompt.
    - seed: image i depends on (its prompt, seed, i) and the settings.
    - negative_prompt: what the images should not show.
    - output: "pil" for PIL images, "np" for uint8 arrays (H, W, 3).
    - callback: is called after each network call with its number, from 1, and the images as they
      are then.
    - settings: keys of `config.sampling`, such as calls, guidance, temperature and sampler, and
      options of the sampler, such as order; the model's config has the defaults. The sampler is a
      name or an object (`samplers.base.Sampler`).

    The result is one image for a single prompt with num 1, and else a list or, with "np", an array
    (images, H, W, 3), all images of the first prompt first.
    """

    def __call__(
        self,
        prompts: Prompts = "",
        *,
        num: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        output: str = "pil",
        callback: Callback | None = None,
        **settings: Any,
    ) -> Any:
        """Images of the prompts."""
        given = dict(seed=seed, negative_prompt=negative_prompt, **settings)
        draw = lambda texts: self.decode(self.tokens(texts, **given))
        watch = lambda texts: (images for _, images in self.watch(texts, **given))
        return self._deliver(draw, watch, prompts, num, output, callback)

    def inpaint(
        self,
        prompts: Prompts,
        image: Picture,
        mask: Picture,
        *,
        strength: float = 1.0,
        **arguments: Any,
    ) -> Any:
        """The image, with what is white in the mask painted anew.

        A smaller image becomes a square of the model's size. The mask has the proportions of the
        image. `strength` is that of `vary`.
        """
        return self._edit(prompts, image, mask, None, strength, **arguments)

    def vary(
        self, prompts: Prompts, image: Picture, *, strength: float = 0.6, **arguments: Any
    ) -> Any:
        """Variations of the image: sampling starts from its tokens at the time strength * T."""
        return self._edit(prompts, image, None, None, strength, **arguments)

    def extend(
        self,
        prompts: Prompts,
        image: Picture,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **arguments: Any,
    ) -> Any:
        """The image with that many pixels more on each side."""
        return self._edit(prompts, image, None, (left, top, right, bottom), 1.0, **arguments)

    def _edit(
        self,
        prompts: Prompts,
        image: Picture,
        mask: Picture | None,
        extension: tuple[int, int, int, int] | None,
        strength: float,
        *,
        num: int = 1,
        output: str = "pil",
        callback: Callback | None = None,
        **given: Any,
    ) -> Any:
        pixels = _read(image, "image", decode, pixels_of)
        marked = None if mask is None else _read(mask, "mask", decode_mask, mask_of)
        edit = inpaint.make_edit_image(pixels, marked, extension, self.square)
        given |= {"strength": strength}
        draw = lambda texts: inpaint.edit(self, edit, texts, **given)
        watch = lambda texts: inpaint.watch(self, edit, texts, **given)
        return self._deliver(draw, watch, prompts, num, output, callback)

    def _deliver(
        self,
        draw: Callable[[list[str]], Images],
        watch: Callable[[list[str]], Iterator[Images]],
        prompts: Prompts,
        num: int,
        output: str,
        callback: Callback | None,
    ) -> Any:
        """The images of `draw`, or the last ones of `watch` if there is a callback, as they are
        asked for.
        """
        if output not in OUTPUTS:
            raise UserError(f'output must be "pil" or "np", got {output!r}')
        if num < 1:
            raise UserError(f"num, the images of each prompt, must be at least 1, got {num}")
        single = isinstance(prompts, (str, int))
        texts = [str(prompt) for prompt in ([prompts] if single else prompts) for _ in range(num)]
        if not texts:
            raise UserError("there is no prompt: give a text or several")

        def shown(images: Images) -> Any:
            made = images if output == "np" else [Image.fromarray(image) for image in images]
            return made[0] if single and num == 1 else made

        if callback is None:
            return shown(draw(texts))
        result = None
        for call, images in enumerate(watch(texts), start=1):
            result = shown(images)
            callback(call, result)
        return result

    def __repr__(self) -> str:
        size = self.config.data.image_size
        return f"TextToImage({size} x {size} pixels; {'; '.join(map(str, self.checkpoints))})"


def load(
    model: str | os.PathLike,
    plan: str | os.PathLike | None = None,
    *,
    stage: str | None = None,
    checkpoint: str | int | None = None,
    adapter: str | os.PathLike | None = None,
    adapter_scale: float = 1.0,
) -> TextToImage:
    """Loads a trained model, which is only read. UserError if there is none.

    Args:
      model: a workdir; a file written by `vqd export`; a file or folder of released PyTorch weights
        that `vqd convert` takes without more; "hf://OWNER/NAME", a repository of the Hugging Face
        hub with one of these; or the name of a model that comes with the package,
        such as "pretrained/emoji64".
      plan: a file written by `vqd plan`, instead of the workdir's own.
      stage: "diffusion" or "autoregressive", for a model that has both.
      checkpoint: "best", "last" or a step, of the model over tokens (of the codec, where only that
        is trained); by default the best, if training keeps one, and else the last. The codec is
        the one whose tokens the model was trained on: likewise its best, or else its last.
      adapter: a folder that training with `adapter.rank` wrote, for the workdir it started from,
        or another in the layout of PEFT; "hf://OWNER/NAME" for one on the Hugging Face hub.
      adapter_scale: how strongly the adapter changes the model.
    """
    stored = _stored(model, stage, checkpoint)
    config, weights, codec_weights = stored.config, stored.weights, stored.codec_weights
    network = tokenizer = None
    if stored.stage:
        tokenizer = load_tokenizer(stored.tokenizer)
        network = build.TOKEN_STAGES[stored.stage](config, tokenizer)
        config.sampling.update(network.fixed_sampling)
    if adapter:
        if stored.stage != "diffusion":
            raise UserError(
                f"an adapter changes a denoiser, and what is loaded from {model} has none"
            )
        name = os.fspath(adapter).removeprefix(HUB)
        weights["denoiser"] = lora_files.apply(name, weights["denoiser"], scale=adapter_scale)
    tokens = None if network is None else network.tokens
    measured = functools.cache(lambda: stored.plan(plan, tokens))
    if plan:
        measured()  # what was asked for is checked at once, the model's own when it is needed
    stored_digest = ""
    if network is not None and platform() != "cpu":
        stored_digest = weights_digest(weights, codec_weights)
        weights = in_compute_dtype(network, weights)
    return TextToImage(
        config=config,
        codec=build.vqvae_stage(config),
        codec_weights=_to_device(codec_weights),
        stage=network,
        weights=None if weights is None else _to_device(weights),
        tokenizer=tokenizer,
        entropy=measured,
        checkpoints=stored.checkpoints,
        stored_digest=stored_digest,
    )


def _stored(
    model: str | os.PathLike, stage: str | None, checkpoint: str | int | None
) -> StoredModel:
    """What is stored of a model, wherever it is."""
    name = os.fspath(model)
    path = model_path(model)
    if not name.startswith(HUB) and not os.path.isfile(path):
        if not Workdir(path).exists():
            raise UserError(
                f"there is no workdir {model}: train one with vqd train, or use {MODEL}"
            )
        if not any(os.path.exists(os.path.join(path, file)) for file in OTHER_FOLDERS):
            return read_workdir(path, stage, checkpoint)
    if checkpoint is not None:
        raise UserError(f"only a workdir has several checkpoints, and {model} is none")

    from vqd_jax.inference import convert  # readers of foreign weights, slow to import

    return convert.stored_model(name.removeprefix(HUB), stage)


def _read(
    picture: Picture,
    name: str,
    of_file: Callable[[bytes, int], np.ndarray],
    of_image: Callable[[Image.Image], np.ndarray],
) -> np.ndarray:
    """The pixels, or the mask, of a picture. UserError if it cannot be read."""
    if isinstance(picture, (str, os.PathLike)):
        return inpaint.read_picture(os.fspath(picture), of_file)
    if isinstance(picture, np.ndarray):
        if picture.dtype == bool:
            picture = picture.astype(np.uint8) * 255
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise UserError(
                f"the {name} must be uint8 pixels (H, W, 3), got {picture.dtype} {picture.shape}"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise UserError(
            f"the {name} must be a file, a PIL image or an array, got {type(picture).__name__}"
        )
    return of_image(picture)


def _to_device(tree: Any) -> Any:
    """The arrays of a tree of dictionaries on the default device.

    The dictionaries are emptied on the way, so large arrays are never held twice.
    """
    if isinstance(tree, dict):
        return {name: _to_device(tree.pop(name)) for name in list(tree)}
    return None if tree is None else jax.device_put(tree)
