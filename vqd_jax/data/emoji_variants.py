"""More records from the images of emoji, made on reading: recoloured, mirrored, and two things in
one image.

Only originals of the training set have variants. Which (emoji, colour) pairs and which pairs of
things are held out is decided by a stable hash, for all styles at once.
"""

import dataclasses
import hashlib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vqd_jax.core.files import atomic_write
from vqd_jax.data import hues, splits
from vqd_jax.data.emoji_captions import captions, phrase
from vqd_jax.data.emoji_wording import COLOUR_WORDS, EmojiRecord, Words, coloured, wordings
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
# the hues, least saturation and least value for which each word of COLOURS is the right one
NAMED = (
    (-12.0, 14.0, 0.6, 0.45),
    (18.0, 33.0, 0.65, 0.8),
    (40.0, 64.0, 0.55, 0.85),
    (80.0, 158.0, 0.45, 0.35),
    (182.0, 248.0, 0.45, 0.4),
    (252.0, 294.0, 0.35, 0.4),
    (297.0, 344.0, 0.35, 0.7),
)
WHITE = 240  # every channel of a white pixel is at least this
ASYMMETRY = 2.0  # the least mean difference of a pixel from its mirror image, in 1/255
BESIDE = 0.7  # the share of pairs side by side; in the others one thing is small, in a corner
SEED = 64  # of the pairs
VERSION = 1  # of the pixels and captions of variants


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(","))


_DIRECTED = frozenset(
    """left right left-facing right-facing leftwards rightwards waxing waning quarter crescent
    gibbous arrow""".split()
)
_MIRRORED = frozenset(
    """
    animal-amphibian animal-bird animal-bug animal-mammal animal-marine animal-reptile plant-flower
    plant-other food-asian food-fruit food-marine food-prepared food-sweet food-vegetable drink
    dishware face-affection face-concerned face-costume face-glasses face-hand face-hat
    face-neutral-skeptical face-smiling face-tongue face-unwell cat-face monkey-face heart hands
    hand-fingers-closed hand-fingers-open hand-fingers-partial hand-prop person person-activity
    person-fantasy person-gesture person-resting person-role person-sport body-parts sport clothing
    tool household transport-air transport-ground transport-water musical-instrument
    """.split()
) | {"sky & weather"}
_WITH_TEXT = _names("""
    ambulance, baby bottle, bank, beverage box, billed cap, bottle with popping cork, bus stop,
    canned food, chocolate bar, elevator, face with symbols on mouth, fire engine,
    fortune cookie, fuel pump, glass of milk, label, lotion bottle, metro, motorway,
    musical keyboard, oil drum, oncoming police car, oncoming taxi, person in steamy room,
    police car, police officer, pool 8 ball, roll of paper, running shirt, safety vest, sake,
    salt, scientist, singer, sleeping face, star of david, station, stop sign, superhero, taxi,
    teacher, technologist, thermometer, ticket, world map
    """)

_OBJECTS = frozenset(
    """
    animal-amphibian animal-bird animal-bug animal-mammal animal-marine animal-reptile plant-flower
    plant-other food-asian food-fruit food-marine food-prepared food-sweet food-vegetable drink
    transport-air transport-ground transport-water sport clothing tool household
    musical-instrument
    """.split()
) | {"light & video", "computer", "phone", "game", "place-building", "music"}
_SCENES = ("place-", "hotel", "transport-water", "person-sport")  # starts of subcategories
_OTHER_COLOUR = frozenset({"mahjong red dragon"})
_NO_OBJECTS = _names("""
    badminton, bowling, brick, broken chain, bubbles, building construction, bus stop, calendar,
    chains, cinema, club suit, construction, cooking, coral, cricket game, diamond suit,
    elevator, fallen leaf, field hockey, heart suit, hole, houses, ice hockey, joker, lacrosse,
    landslide, link, microbe, motorway, paw prints, ping pong, railway track, rock, seat, shower,
    spade suit, spider web, station, stop sign, tennis, window, wood
    """)


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

    item: str
    name: str
    style: str
    group: str
    split: str
    label: int
    category: str
    subcategory: str
    captions: tuple[str, ...]
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


@dataclasses.dataclass(frozen=True, slots=True)
class Recoloured:
    """An original with its hues turned."""

    origin: int
    degrees: float

    @property
    def origins(self) -> tuple[int, ...]:
        return (self.origin,)

    def image(self, resized: Read, stored: Read, size: int) -> Pixels:
        return hues.turn(resized(self.origin), self.degrees)


@dataclasses.dataclass(frozen=True, slots=True)
class Mirrored:
    """An original with left and right exchanged."""

    origin: int

    @property
    def origins(self) -> tuple[int, ...]:
        return (self.origin,)

    def image(self, resized: Read, stored: Read, size: int) -> Pixels:
        return np.ascontiguousarray(resized(self.origin)[:, ::-1])


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two originals in one image.

    Attributes:
      boxes: of each, (left, top, width, height) as fractions of the side; they do not overlap.
      beside: whether they are side by side, the first one left; otherwise the second one is small
        and in a corner.
    """

    first: int
    second: int
    boxes: tuple[tuple[float, float, float, float], tuple[float, float, float, float]]
    beside: bool

    @property
    def origins(self) -> tuple[int, ...]:
        return self.first, self.second

    def image(self, resized: Read, stored: Read, size: int) -> Pixels:
        out = np.full((size, size, 3), 255, np.uint8)
        for origin, box in zip(self.origins, self.boxes):
            _paste(out, stored(origin), [size * side for side in box])
        return out


Variant = Recoloured | Mirrored | Pair


def recoloured(
    originals: Sequence[Original], held_out: float, varied: bool
) -> Iterator[tuple[Variant, Record]]:
    """The originals that have a main colour in the other colours.

    held_out: the share of (emoji, colour) pairs that training shows in no style. Emoji that differ
    only in their colour count as one, and no pair is held out that an original shows.
    """
    names = {original.name for original in originals}
    shown = {(o.bare, int(o.look["index"])) for o in originals}
    for i, original in enumerate(originals):
        if original.split != splits.TRAIN or not _recolourable(original, names):
            continue
        bare, look = original.bare, original.look
        for k, (colour, (_, _, saturation, value)) in enumerate(zip(COLOURS, NAMED)):
            name = coloured(original.name, colour)
            if k == look["index"] or name in names or look["turned"][k] < SHARE:
                continue
            if look["saturation"] < saturation or look["value"] < value:
                continue
            secret = (bare, k) not in shown and splits.unit("colour", bare, colour) < held_out
            yield (
                Recoloured(i, round(HUES[k] - float(look["hue"]), 2)),
                _record(
                    varied,
                    words=(original.words,),
                    colours=(colour,),
                    item=original.item,
                    captions=captions(name, original.style),
                    style=original.style,
                    split=splits.COLOURS if secret else splits.TRAIN_VARIANTS,
                    label=original.label,
                    group=original.group,
                    part="recoloured",
                ),
            )


def mirrored(originals: Sequence[Original], varied: bool) -> Iterator[tuple[Variant, Record]]:
    """The mirror images of things whose mirror image is right, unless they are symmetric."""
    for i, original in enumerate(originals):
        fits = (
            original.split == splits.TRAIN
            and original.look["asymmetry"] >= ASYMMETRY
            and original.subcategory in _MIRRORED
            and original.name not in _WITH_TEXT
            and _DIRECTED.isdisjoint(original.name.split())
        )
        if fits:
            yield (
                Mirrored(i),
                _record(
                    varied,
                    words=(original.words,),
                    colours=(original.colour,),
                    item=original.item,
                    captions=original.captions,
                    style=original.style,
                    split=splits.TRAIN_VARIANTS,
                    label=original.label,
                    group=original.group,
                    part="mirrored",
                ),
            )


def pairs(
    originals: Sequence[Original], count: int, held_out: float, varied: bool
) -> Iterator[tuple[Variant, Record]]:
    """A fixed choice of `count` images of two things in one style.

    held_out: the share of pairs of emoji that training shows in no style.
    """
    objects: dict[str, list[int]] = {}
    for i, original in enumerate(originals):
        if original.split == splits.TRAIN and _is_object(original):
            objects.setdefault(original.style, []).append(i)
    rng = np.random.default_rng(SEED)
    styles = [style for style in sorted(objects) if len(objects[style]) > 1]
    if not styles:
        return
    sizes = np.array([len(objects[style]) for style in styles])
    while count:
        style = styles[rng.choice(len(styles), p=sizes / sizes.sum())]
        i, j = (objects[style][k] for k in rng.integers(len(objects[style]), size=2))
        pair = _arranged(i, j, rng)
        first, second = originals[i], originals[j]
        if first.group == second.group or set(first.name.split()) & set(second.name.split()):
            continue
        count -= 1
        joint = "and" if pair.beside else "with"
        what = f"{phrase(first.name)} {joint} {phrase(second.name)}"
        secret = splits.unit("pair", *sorted((first.group, second.group))) < held_out
        yield (
            pair,
            _record(
                varied,
                words=(first.words, second.words),
                colours=(first.colour, second.colour),
                joint=joint,
                item=f"{first.item}+{second.item}",
                captions=wordings(what, style),
                style=style,
                split=splits.PAIRS if secret else splits.TRAIN_VARIANTS,
                label=first.label,
                group=f"{first.group}+{second.group}",
                part="pair",
            ),
        )


def looks(cache: Path, digests: Sequence[str], stored: Read) -> np.ndarray:
    """The LOOK of every stored image, computed once and kept in the folder."""
    name = hashlib.sha256(repr((VERSION, LOOK, digests)).encode()).hexdigest()[:16]
    path = cache / f"emoji-looks-{name}.npy"
    if path.exists():
        return np.load(path)
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
    dark = _ink(image)
    ink = float(dark.mean())
    frame = float(np.concatenate([dark[0], dark[-1], dark[1:-1, 0], dark[1:-1, -1]]).mean())
    mirror = float(np.abs(image.astype(np.int16) - image[:, ::-1]).mean())
    if colour.index < 0:
        return *colour, 0.0, 0.0, ink, frame, mirror, (0.0,) * len(COLOURS)
    coloured = hues.is_coloured(*channels[1:])
    hue, saturation, value = (channel[coloured] for channel in channels)
    mine, weight = hues.classify(hue) == colour.index, saturation * value
    turned = [
        weight[hues.classify((hue + target - colour.hue) % 360) == k].sum() / weight.sum()
        for k, target in enumerate(HUES)
    ]
    mean = saturation[mine].mean(), value[mine].mean()
    return *colour, *mean, ink, frame, mirror, tuple(turned)


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


def _recolourable(original: Original, names: set[str]) -> bool:
    """Whether the image has a main colour, and its name a place for the word."""
    kept = original.name.split()
    other = COLOUR_WORDS.difference(COLOURS).intersection(kept)
    same = original.bare == original.name
    clear = same or (original.bare not in names and kept[-1] not in COLOUR_WORDS)
    large = bool(original.look["share"] >= SHARE)
    return large and _takes_colour(original) and not other and clear


def _is_object(original: Original) -> bool:
    name = original.name
    return (
        original.subcategory in _OBJECTS
        and name not in _NO_OBJECTS
        and len(name.split()) <= 2
        and name.replace(" ", "").replace("-", "").isalpha()
    )


def _arranged(first: int, second: int, rng: np.random.Generator) -> Pair:
    """Side by side at random heights, or the second one small in a random corner."""
    draw, *heights = rng.random(3).tolist()
    right, lower = rng.integers(2, size=2).tolist()
    if draw < BESIDE:
        left, other = (
            (x, 0.02 + 0.16 * height, 0.46, 0.8) for x, height in zip((0.02, 0.52), heights)
        )
        return Pair(first, second, (left, other), True)
    corner = lambda high, side: 0.98 - side if high else 0.02
    big = (corner(not right, 0.58), corner(not lower, 0.58), 0.58, 0.58)
    small = (corner(right, 0.38), corner(lower, 0.38), 0.38, 0.38)
    return Pair(first, second, (big, small), False)


def _ink(image: Pixels) -> Bool[np.ndarray, "H W"]:
    """Which pixels are not white."""
    red, green, blue = (image[..., i] < WHITE for i in range(3))  # faster than a reduction
    return red | green | blue


def _paste(out: UInt8[np.ndarray, "side side 3"], image: Pixels, box: Sequence[float]) -> None:
    """Draws the part of the image that is not white as large as it fits into the box."""
    left, top, width, height = box
    ink = _ink(image)
    rows, columns = (ink.any(axis) for axis in (1, 0))
    if not rows.any():
        return
    y, x = (np.flatnonzero(some)[[0, -1]] + [0, 1] for some in (rows, columns))
    scale = min(width / (x[1] - x[0]), height / (y[1] - y[0]))
    size = [max(1, round(scale * int(end - start))) for start, end in (x, y)]
    drawn = Image.fromarray(image).resize(
        size, Image.Resampling.BICUBIC, box=(x[0], y[0], x[1], y[1])
    )
    at = [round(left + (width - size[0]) / 2), round(top + (height - size[1]) / 2)]
    out[at[1] : at[1] + size[1], at[0] : at[0] + size[0]] = np.asarray(drawn)


def _record(
    varied: bool,
    *,
    words: tuple[Words, ...],
    colours: tuple[str, ...],
    joint: str = "and",
    **fields,
) -> Record:
    if varied:
        return EmojiRecord(words=words, colours=colours, joint=joint, **fields)
    return Record(**fields)
