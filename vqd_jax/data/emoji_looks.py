"""What the images of emoji look like, measured once: the main colour, whether a word names it, and
which originals may have variants.
"""

import contextlib
import dataclasses
import hashlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from vqd_jax.core.files import atomic_write
from vqd_jax.data import hues
from vqd_jax.data.emoji_wording import COLOUR_WORDS, Words
from vqd_jax.data.hues import COLOURS, HUES
from vqd_jax.data.source import Record
from vqd_jax.runtime.progress import track

Pixels = UInt8[np.ndarray, "H W 3"]
Read = Callable[[int], Pixels]  # an original by index

SHARE = 0.6  # the least share of the main colour of an image that is recoloured
NAMED_SHARE = 0.8  # and of one whose captions name its own colour
SATURATED = 0.15  # the least share of coloured pixels of both
INK = 0.5  # and of coloured ones among the pixels that are not white
FRAME = 0.5  # the largest share of pixels at the border that are not white, but of symbols
# the hues, least saturation and least value for which each word of COLOURS is the right one; with
# less of them, orange and red are brown, yellow is olive, and red is pink
NAMED = (
    (-12.0, 14.0, 0.65, 0.72),
    (18.0, 33.0, 0.7, 0.85),
    (40.0, 64.0, 0.55, 0.85),
    (80.0, 158.0, 0.45, 0.35),
    (182.0, 248.0, 0.45, 0.4),
    (252.0, 294.0, 0.35, 0.4),
    (297.0, 344.0, 0.35, 0.7),
)
# the least saturation and value of an image whose hue is turned to the typical one of a colour
TURNED = (
    (0.6, 0.55),
    (0.65, 0.8),
    (0.55, 0.85),
    (0.45, 0.35),
    (0.45, 0.4),
    (0.35, 0.4),
    (0.35, 0.7),
)
WHITE = 240  # every channel of a white pixel is at least this
VERSION = 1  # of LOOK
# what a colour word in front of the name does not describe
_SCENES = ("place-", "hotel", "transport-water", "person-sport")  # starts of subcategories
_OTHER_COLOUR = frozenset({"cooking", "mahjong red dragon", "fishing pole", "flying saucer"})

LOOK = np.dtype(
    [
        ("index", np.int8),  # the first four are those of hues.Colour
        ("share", np.float32),
        ("saturated", np.float32),
        ("hue", np.float32),
        ("saturation", np.float32),  # mean of the pixels of the main colour
        ("value", np.float32),
        ("ink", np.float32),  # the share of pixels that are not white
        ("frame", np.float32),  # and of those at the border
        ("asymmetry", np.float32),
        ("turned", np.float32, len(COLOURS)),  # share of each colour once its hue is the main one
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """A stored image and what it shows; `look` is a row of LOOK."""

    record: Record
    name: str
    category: str
    subcategory: str
    words: Words
    look: np.void

    @property
    def bare(self) -> str:
        """The name without words for colours."""
        return " ".join(word for word in self.name.split() if word not in COLOUR_WORDS)

    @property
    def colour(self) -> str:
        """The word for the image's main colour, "" if there is none or the name says it."""
        index = int(self.look["index"])
        if self.look["share"] < NAMED_SHARE or self.bare != self.name or not _takes_colour(self):
            return ""
        low, high, saturation, value = NAMED[index]
        hue = (float(self.look["hue"]) + 180) % 360 - 180 if low < 0 else float(self.look["hue"])
        fits = low <= hue <= high
        fits &= self.look["saturation"] >= saturation and self.look["value"] >= value
        return COLOURS[index] if fits else ""


def looks(cache: Path, digests: Sequence[str], stored: Read) -> np.ndarray:
    """The LOOK of every stored image, computed once and kept in the folder."""
    name = hashlib.sha256(repr((VERSION, LOOK, digests)).encode()).hexdigest()[:16]
    path = cache / f"emoji-looks-{name}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
        if len(stored_looks := np.load(path)) == len(digests):
            return stored_looks
    rows = track(range(len(digests)), len(digests), "measuring the colours of emoji", "image")
    out = np.array([look(stored(i)) for i in rows], LOOK)
    with atomic_write(path, "the colours of emoji to") as part, part.open("wb") as file:
        # given the file itself, NumPy would hide the reason of a failed write
        np.save(types.SimpleNamespace(write=file.write), out)
    return out


def look(image: Pixels) -> tuple[object, ...]:
    """The values of LOOK of an image."""
    channels = hues.hsv(image)
    colour = hues.main_colour(*channels)
    dark = ink(image)
    share = float(dark.mean())
    frame = float(np.concatenate([dark[0], dark[-1], dark[1:-1, 0], dark[1:-1, -1]]).mean())
    mirror = float(np.abs(image.astype(np.int16) - image[:, ::-1]).mean())
    if colour.index < 0:
        return *colour, 0.0, 0.0, share, frame, mirror, (0.0,) * len(COLOURS)
    coloured = hues.is_coloured(*channels[1:])
    hue, saturation, value = (channel[coloured] for channel in channels)
    mine, weight = hues.classify(hue) == colour.index, saturation * value
    turned = [
        weight[hues.classify((hue + target - colour.hue) % 360) == k].sum() / weight.sum()
        for k, target in enumerate(HUES)
    ]
    mean = saturation[mine].mean(), value[mine].mean()
    return *colour, *mean, share, frame, mirror, tuple(turned)


def recolourable(original: Original, names: set[str]) -> bool:
    """Whether the image has a main colour, and its name a place for the word."""
    kept = original.name.split()
    other = COLOUR_WORDS.difference(COLOURS).intersection(kept)
    same = original.bare == original.name
    clear = same or (original.bare not in names and kept[-1] not in COLOUR_WORDS)
    large = bool(original.look["share"] >= SHARE)
    return large and _takes_colour(original) and not other and clear


def _takes_colour(original: Original) -> bool:
    """Whether the thing has a main colour, and "a blue …" in front of its name says so."""
    seen, name = original.look, original.name
    return bool(
        seen["index"] >= 0
        and seen["saturated"] >= max(SATURATED, INK * seen["ink"])
        and (seen["frame"] < FRAME or original.category == "Symbols")
        and not original.subcategory.startswith(_SCENES)
        and not name.startswith(("no ", "non-"))
        and "hair" not in name
        and name not in _OTHER_COLOUR
    )


def ink(image: Pixels) -> Bool[np.ndarray, "H W"]:
    """Which pixels are not white."""
    red, green, blue = (image[..., i] < WHITE for i in range(3))  # faster than a reduction
    return red | green | blue


def ink_box(image: Pixels) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of what is not white, as in Pillow; None if all is."""
    dark = ink(image)
    if not dark.any():
        return None
    (left, right), (top, bottom) = (
        (np.flatnonzero(dark.any(axis))[[0, -1]] + [0, 1]).tolist() for axis in (0, 1)
    )
    return left, top, right, bottom
