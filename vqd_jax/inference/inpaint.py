"""Changing pictures: repaint a region of any shape, vary a whole picture, or paint beyond its
edges.

Tokens whose cells are kept enter every network call and come out as they were. A canvas larger than
the model's pictures is painted window by window, the one with the most known cells first.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_bytes import LARGEST, decode, reason
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.runtime.progress import track
from vqd_jax.samplers.base import Constraint


@dataclasses.dataclass(frozen=True)
class EditImage:
    """A picture and where to paint: `image` uint8 (H, W, 3), `repaint` (H, W), True where the
    picture may change.
    """

    image: UInt8[np.ndarray, "H W 3"]
    repaint: Bool[np.ndarray, "H W"]


def read(init_image: str, mask: str | None, extend: Sequence[str], size: int) -> EditImage:
    """The canvas that the flags of `sample` describe; UserError where they do not fit together."""
    return canvas(_open(init_image), _open(mask) if mask else None, extend, size)


def canvas(
    picture: Image.Image, mask: Image.Image | None, extend: Sequence[str], size: int
) -> EditImage:
    """A picture with a mask or wider edges: brought to the model's `size`, or kept if it is larger
    and there is one of them.
    """
    if (not mask and not extend) or min(picture.size) < size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    image = np.asarray(picture)
    repaint = np.zeros(image.shape[:2], bool)
    if mask:
        white = mask.convert("L")
        if white.size != picture.size:
            white = white.resize(picture.size, Image.Resampling.NEAREST)
        repaint = np.asarray(white) > 127
        if not repaint.any():
            raise UserError("the mask has no white: nothing would be repainted")
    if extend:
        try:
            left, top, right, bottom = map(int, extend)
        except ValueError:
            raise UserError(
                "--extend takes four numbers of pixels, LEFT,TOP,RIGHT,BOTTOM, got "
                f"{','.join(extend)}"
            ) from None
        if min(left, top, right, bottom) < 0 or not max(left, top, right, bottom):
            raise UserError("--extend takes numbers of pixels that are not negative, and not all 0")
        around = (top, bottom), (left, right)
        image = np.pad(image, (*around, (0, 0)), mode="edge")
        repaint = np.pad(repaint, around, constant_values=True)
    return EditImage(image, repaint if mask or extend else np.ones_like(repaint))


def edit(
    model: TextToImage,
    canvas: EditImage,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    strength: float = 1.0,
    **settings: Any,
) -> UInt8[np.ndarray, "b H W 3"]:
    """The canvas painted once for each prompt; outside of the cells with something to repaint no
    pixel changes.

    `strength` below 1 begins at the time strength * T from the tokens that are there. Row i has the
    noise of image i.
    """

    def once(*prompts: Any, **asked: Any) -> Iterator[tuple[Any, Any]]:
        tokens = model.tokens(*prompts, **asked)
        yield tokens, model.decode(tokens)

    images = collections.deque([np.repeat(canvas.image[None], len(prompts), axis=0)], maxlen=1)
    images.extend(
        _painting(model, canvas, prompts, once, track, seed=seed, strength=strength, **settings)
    )
    return images[0]


def watch(
    model: TextToImage, canvas: EditImage, prompts: Sequence[str], **settings: Any
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """What `edit` paints after each network call, as it comes; the last pictures are those of
    `edit`, bit for bit.
    """
    return _painting(model, canvas, prompts, model.watch, lambda places, *_: places, **settings)


def check(model: TextToImage, canvas: EditImage) -> tuple[int, int]:
    """(the model's size, pixels of a cell), or UserError for a canvas that does not fit them."""
    size, cell = model.config.data.image_size, model.codec.model.downsampling
    height, width = canvas.repaint.shape
    if height < size or width < size or height % cell or width % cell:
        raise UserError(
            f"a canvas needs sides of at least {size} pixels in multiples of {cell}, got {width} "
            f"x {height}"
        )
    return size, cell


def _painting(
    model: TextToImage,
    canvas: EditImage,
    prompts: Sequence[str],
    states: Callable[..., Iterator[tuple[Any, Any]]],
    shown: Callable[..., Any],
    *,
    seed: int = 0,
    strength: float = 1.0,
    **settings: Any,
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """The canvases after each of the `states` (tokens, images) of each window; `shown` may show how
    many windows are done.
    """
    size, cell = check(model, canvas)
    height, width = canvas.repaint.shape
    todo = canvas.repaint.reshape(height // cell, cell, width // cell, cell).any(
        (1, 3)
    )  # cells, (h, w)
    images = np.repeat(canvas.image[None], len(prompts), axis=0)
    n, side = (size // cell) ** 2, size // cell
    tokens, painted = np.zeros((len(prompts), *todo.shape), np.int32), np.zeros_like(todo)
    places = windows(todo, side)
    for number, (y, x) in enumerate(shown(places, len(places), "painting", "window")):
        rows, columns = slice(y, y + side), slice(x, x + side)
        pixels = slice(y * cell, (y + side) * cell), slice(x * cell, (x + side) * cell)
        fresh = todo[rows, columns] & ~painted[rows, columns]
        here = model.encode(images[:, *pixels]).reshape(-1, side, side)
        here = np.where(painted[rows, columns], tokens[:, rows, columns], here).reshape(-1, n)
        keep = np.broadcast_to(~fresh.reshape(1, n), here.shape)
        repainted, before = (
            fresh.repeat(cell, 0).repeat(cell, 1)[None, ..., None],
            images[:, *pixels],
        )
        for state in states(
            prompts,
            seed=seed,
            first=number * len(prompts),
            strength=strength,
            image=here if strength < 1 else None,
            constraint=Constraint(keep, here),
            **settings,
        ):
            images = images.copy()
            images[:, *pixels] = np.where(repainted, state[1], before)
            yield images
        tokens[:, rows, columns] = np.where(
            fresh, state[0].reshape(-1, side, side), tokens[:, rows, columns]
        )
        painted[rows, columns] |= fresh


def windows(todo: Bool[np.ndarray, "h w"], side: int) -> list[tuple[int, int]]:
    """Top left cells of windows that cover all of `todo`, at half-window steps, always next the one
    that knows most.
    """
    todo, (height, width) = todo.copy(), todo.shape
    starts = lambda length: sorted({*range(0, length - side, max(side // 2, 1)), length - side})
    places = [(y, x) for y in starts(height) for x in starts(width)]
    out = []
    while todo.any():
        open_ = lambda place: todo[place[0] : place[0] + side, place[1] : place[1] + side].sum()
        best = min((place for place in places if open_(place)), key=open_)
        todo[best[0] : best[0] + side, best[1] : best[1] + side] = False
        out.append(best)
    return out


def _open(path: str) -> Image.Image:
    if not Path(path).is_file():
        raise UserError(f"there is no picture {path}")
    return decoded(Path(path).read_bytes(), path)


def decoded(content: bytes, what: str, largest: int = LARGEST) -> Image.Image:
    """The picture in a file's bytes, of at most `largest` pixels, or a sentence that begins with
    `what`.
    """
    try:
        return Image.fromarray(decode(content, largest))
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        raise UserError(f"{what} is not a picture that can be read ({reason(error)})") from error
