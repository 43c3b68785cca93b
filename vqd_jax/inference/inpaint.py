"""Inpainting, image-to-image and outpainting.

Tokens outside of the mask condition every network call and are kept. An image larger than the
model's is inpainted window by window, starting with the one that has the fewest tokens to paint.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_bytes import LARGEST, decode, decode_mask, reason
from vqd_jax.data.transforms import SizedTransform
from vqd_jax.inference.model import Model
from vqd_jax.runtime.progress import track
from vqd_jax.samplers.base import Constraint

# (tokens (b, n), images (b, H, W, 3)) after some network calls, for prompts and settings
States = Callable[..., Iterator[tuple[Int[np.ndarray, "b n"], UInt8[np.ndarray, "b H W 3"]]]]

QUARTER = 64  # of 255: a pixel of the square is repainted if the mask covers that much of it


@dataclasses.dataclass(frozen=True)
class EditImage:
    """An image to edit, and its mask: True where it may change."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]


def read_edit_image(
    init_image: str, mask: str | None, extend: Sequence[str], square: SizedTransform
) -> EditImage:
    """The image and mask in files. UserError if they cannot be read or do not fit together."""
    marked = read_picture(mask, decode_mask) if mask else None
    if marked is not None and marked.all():
        logging.warning("the mask %s covers all of the image: everything is repainted", mask)
    extension = _parse_extension(extend) if extend else None
    return make_edit_image(read_picture(init_image), marked, extension, square)


def make_edit_image(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "h w"] | None,
    extension: Sequence[int] | None,
    square: SizedTransform,
    *,
    large: bool = True,
) -> EditImage:
    """An image with its mask, extended by LEFT, TOP, RIGHT, BOTTOM pixels to be painted.

    Without mask and extension all of it may change. `square` makes it a square of the model's size,
    as in training, unless it is larger, `large` allows that and there is a mask or an extension.
    The mask has the proportions of the image, or is one of that square.
    """
    height, width = image.shape[:2]
    part = mask is not None or bool(extension)
    large = large and part and min(height, width) >= square.size
    pixels = image if large else square(image)
    paint = np.zeros(pixels.shape[:2], bool)
    if mask is not None:
        if not mask.any():
            raise UserError("the mask marks nothing: no part of the image would be repainted")
        paint = _fitted(mask, (height, width), None if large else square)
    if extension:
        left, top, right, bottom = extension
        if min(extension) < 0 or not max(extension):
            raise UserError(
                "an image is extended by numbers of pixels that are not negative, and not all 0"
            )
        around = (top, bottom), (left, right)
        pixels = np.pad(pixels, (*around, (0, 0)), mode="edge")
        paint = np.pad(paint, around, constant_values=True)
    return EditImage(pixels, paint if part else np.ones_like(paint))


def _fitted(
    mask: Bool[np.ndarray, "h w"], shape: tuple[int, int], square: SizedTransform | None
) -> Bool[np.ndarray, "H W"]:
    """The mask of an image of that shape or, with `square`, of what that leaves of it."""
    if square and mask.shape == (square.size, square.size):
        return mask
    (height, width), (mask_height, mask_width) = shape, mask.shape
    if abs(mask_width * height - mask_height * width) > max(height, width):
        raise UserError(
            f"the mask has {mask_width} x {mask_height} pixels and other proportions than the "
            f"image, which has {width} x {height}"
        )
    white = Image.fromarray(mask.astype(np.uint8) * 255)
    white = np.asarray(white.resize((width, height), Image.Resampling.NEAREST))
    coverage = square(np.repeat(white[..., None], 3, axis=-1))[..., 0] if square else white
    paint = coverage >= QUARTER
    if not paint.any():
        raise UserError(
            f"the mask marks nothing of the {paint.shape[1]} x {paint.shape[0]} pixels that are "
            f"left of the image, which has {width} x {height}"
        )
    return paint


def _parse_extension(extend: Sequence[str]) -> list[int]:
    try:
        left, top, right, bottom = map(int, extend)
        return [left, top, right, bottom]
    except ValueError:
        raise UserError(
            f"--extend takes four numbers of pixels, LEFT,TOP,RIGHT,BOTTOM, got {','.join(extend)}"
        ) from None


def edit(
    model: Model,
    image: EditImage,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    strength: float = 1.0,
    **settings: Any,
) -> UInt8[np.ndarray, "b H W 3"]:
    """The image edited once for each prompt. Pixels change only where the area of a token touches
    the mask.

    A `strength` below 1 starts at the time strength * T from the image's own tokens. Row i has the
    noise of image i.
    """

    def final_state(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        tokens = model.tokens(*args, **kwargs)
        yield tokens, model.decode(tokens)

    images = np.repeat(image.image[None], len(prompts), axis=0)
    for images in _paint(  # noqa: B007
        model, image, prompts, final_state, track, seed=seed, strength=strength, **settings
    ):
        pass
    return images


def watch(
    model: Model, image: EditImage, prompts: Sequence[str], **settings: Any
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """The images of `edit` after each network call, as they are computed; the last ones are its
    result, bit for bit.
    """
    without_bar = lambda windows, *_: windows
    return _paint(model, image, prompts, model.watch, without_bar, **settings)


def check_size(model: Model, image: EditImage) -> tuple[int, int]:
    """(the model's size, pixels of a token). UserError for an image that does not fit them."""
    size, cell = model.config.data.image_size, model.codec.model.downsampling
    height, width = image.mask.shape
    if height < size or width < size or height % cell or width % cell:
        raise UserError(
            f"an image to edit needs sides of at least {size} pixels in multiples of {cell}, got "
            f"{width} x {height}"
        )
    return size, cell


def _paint(
    model: Model,
    edit_image: EditImage,
    prompts: Sequence[str],
    states: States,
    progress: Callable[..., Any],
    *,
    seed: int = 0,
    strength: float = 1.0,
    **settings: Any,
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """The images after each of the `states` of each window; `progress` wraps the windows.

    `cell` is the side of a position in pixels, and `side` that of a window in positions, each of
    which has a token of every group.
    """
    cell, to_paint, corners = _plan(model, edit_image)
    height, width = to_paint.shape
    side, rows = model.config.data.image_size // cell, len(prompts)
    groups = model.codec.codebook.groups
    painted = np.zeros_like(to_paint)
    tokens = np.zeros((rows, groups, height, width), np.int32)  # those that are painted
    images = np.repeat(edit_image.image[None], rows, axis=0)
    for number, (y, x) in enumerate(progress(corners, len(corners), "painting", "window")):
        area = slice(y, y + side), slice(x, x + side)
        pixels = slice(y * cell, (y + side) * cell), slice(x * cell, (x + side) * cell)
        fresh = to_paint[area] & ~painted[area]
        before = images[:, *pixels]
        # tokens painted in other windows are kept as they were drawn, not encoded anew
        encoded = model.encode(before).reshape(-1, groups, side, side)
        known = np.where(painted[area], tokens[:, :, *area], encoded).reshape(rows, -1)
        keep = np.tile(~fresh.ravel(), (rows, groups))
        changes = fresh.repeat(cell, 0).repeat(cell, 1)[None, ..., None]
        for state, painting in states(  # noqa: B007
            prompts,
            seed=seed,
            first=number * rows,
            strength=strength,
            image=known if strength < 1 else None,
            constraint=Constraint(keep, known),
            **settings,
        ):
            images = images.copy()
            images[:, *pixels] = np.where(changes, painting, before)
            yield images
        painting = state.reshape(-1, groups, side, side)
        tokens[:, :, *area] = np.where(fresh, painting, tokens[:, :, *area])
        painted[area] |= fresh


def window_count(model: Model, image: EditImage) -> int:
    """In how many windows the image is painted, one after the other."""
    return len(_plan(model, image)[2])


def _plan(
    model: Model, image: EditImage
) -> tuple[int, Bool[np.ndarray, "h w"], list[tuple[int, int]]]:
    """(pixels of a token, the positions to paint, the corners of the windows)."""
    size, cell = check_size(model, image)
    height, width = (length // cell for length in image.mask.shape)
    to_paint = image.mask.reshape(height, cell, width, cell).any((1, 3))
    return cell, to_paint, windows(to_paint, size // cell)


def windows(to_paint: Bool[np.ndarray, "h w"], side: int) -> list[tuple[int, int]]:
    """Top left corners of windows that cover all tokens to paint, in the order of painting.

    They lie at steps of half a window; next is always the one with the fewest tokens to paint.
    """
    left, (height, width) = to_paint.copy(), to_paint.shape
    starts = lambda length: sorted({*range(0, length - side, max(side // 2, 1)), length - side})
    corners = [(y, x) for y in starts(height) for x in starts(width)]
    window = lambda corner: left[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    order = []
    while left.any():
        open_corners = [corner for corner in corners if window(corner).any()]
        best = min(open_corners, key=lambda corner: window(corner).sum())
        window(best)[:] = False
        order.append(best)
    return order


def read_picture(
    path: str, read: Callable[[bytes, int], np.ndarray] = decode
) -> UInt8[np.ndarray, "H W 3"] | Bool[np.ndarray, "H W"]:
    """`decode_image` of a file."""
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}")
    return decode_image(Path(path).read_bytes(), path, read=read)


def decode_image(
    content: bytes,
    name: str,
    largest: int = LARGEST,
    read: Callable[[bytes, int], np.ndarray] = decode,
) -> np.ndarray:
    """The pixels of a file's bytes, of at most `largest` pixels, or with `read=decode_mask` its
    mask. UserError that starts with `name` otherwise.
    """
    try:
        return read(content, largest)
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        raise UserError(f"{name} is not an image that can be read ({reason(error)})") from error
