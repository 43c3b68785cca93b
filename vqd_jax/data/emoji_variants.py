"""More records from the images of emoji, made on reading: recoloured, mirrored, and two things in
one image.

Only originals of the training set have variants. Which (emoji, colour) pairs and which pairs of
things are held out is decided by a stable hash, for all styles at once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqd_jax.data import hues, splits
from vqd_jax.data.emoji_captions import captions, phrase
from vqd_jax.data.emoji_looks import SHARE, TURNED, Original, Pixels, Read, ink_box, recolourable
from vqd_jax.data.emoji_wording import EmojiRecord, Words, coloured, wordings
from vqd_jax.data.hues import COLOURS, HUES
from vqd_jax.data.source import Record

ASYMMETRY = 2.0  # the least mean difference of a pixel from its mirror image, in 1/255
BESIDE = 0.7  # the share of pairs side by side; in the others one thing is small, in a corner
SEED = 64  # of the pairs
VERSION = 1  # of the pixels and captions of variants


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(","))


# words of names that say a direction, subcategories whose mirror images are right, and emoji of
# these subcategories on which some style writes
_DIRECTED = frozenset(
    """left right left-facing right-facing leftwards rightwards waxing waning quarter crescent
    gibbous arrow""".split()
)
# subcategories that have both mirrored images and pairs
_THINGS = frozenset(
    """
    animal-amphibian animal-bird animal-bug animal-mammal animal-marine animal-reptile plant-flower
    plant-other food-asian food-fruit food-marine food-prepared food-sweet food-vegetable drink
    sport clothing tool household transport-air transport-ground transport-water musical-instrument
    """.split()
)
_MIRRORED = _THINGS.union(
    """
    dishware face-affection face-concerned face-costume face-glasses face-hand face-hat
    face-neutral-skeptical face-smiling face-tongue face-unwell cat-face monkey-face heart hands
    hand-fingers-closed hand-fingers-open hand-fingers-partial hand-prop person person-activity
    person-fantasy person-gesture person-resting person-role person-sport body-parts
    """.split(),
    {"sky & weather"},
)
_WITH_TEXT = _names("""
    ambulance, baby bottle, bank, beverage box, billed cap, bottle with popping cork, bus stop,
    canned food, chocolate bar, elevator, face with symbols on mouth, fire engine,
    fortune cookie, fuel pump, glass of milk, label, lotion bottle, metro, moon cake, motorway,
    musical keyboard, oil drum, oncoming police car, oncoming taxi, person in steamy room,
    police car, police officer, pool 8 ball, racing car, roll of paper, running shirt,
    safety vest, sake, salt, scientist, singer, sleeping face, star of david, station, stop sign,
    superhero, taxi, teacher, technologist, thermometer, ticket, world map
    """)

# subcategories of things for pairs, and emoji of these that are no single things
_OBJECTS = _THINGS | {"light & video", "computer", "phone", "game", "place-building", "music"}
_NO_OBJECTS = _names("""
    badminton, bowling, brick, broken chain, bubbles, building construction, bus stop, calendar,
    chains, cinema, club suit, construction, cooking, coral, cricket game, diamond suit,
    elevator, fallen leaf, field hockey, heart suit, hole, houses, ice hockey, joker, lacrosse,
    landslide, link, microbe, motorway, paw prints, ping pong, railway track, rock, seat, shower,
    spade suit, spider web, station, stop sign, tennis, white flower, window, wood
    """)


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
        if original.record.split != splits.TRAIN or not recolourable(original, names):
            continue
        bare, look = original.bare, original.look
        for k, (colour, (saturation, value)) in enumerate(zip(COLOURS, TURNED)):
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
                    original.record,
                    words=(original.words,),
                    colours=(colour,),
                    captions=captions(name, original.record.style),
                    split=splits.COLOURS if secret else splits.TRAIN_VARIANTS,
                    part="recoloured",
                ),
            )


def mirrored(originals: Sequence[Original], varied: bool) -> Iterator[tuple[Variant, Record]]:
    """The mirror images of things whose mirror image is right, unless they are symmetric."""
    for i, original in enumerate(originals):
        fits = (
            original.record.split == splits.TRAIN
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
                    original.record,
                    words=(original.words,),
                    colours=(original.colour,),
                    split=splits.TRAIN_VARIANTS,
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
        if original.record.split == splits.TRAIN and _is_object(original):
            objects.setdefault(original.record.style, []).append(i)
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
        one, two = first.record, second.record
        if one.group == two.group or set(first.name.split()) & set(second.name.split()):
            continue
        count -= 1
        joint = "and" if pair.beside else "with"
        what = f"{phrase(first.name)} {joint} {phrase(second.name)}"
        secret = splits.unit("pair", *sorted((one.group, two.group))) < held_out
        yield (
            pair,
            _record(
                varied,
                one,
                words=(first.words, second.words),
                colours=(first.colour, second.colour),
                joint=joint,
                item=f"{one.item}+{two.item}",
                captions=wordings(what, style),
                split=splits.PAIRS if secret else splits.TRAIN_VARIANTS,
                group=f"{one.group}+{two.group}",
                part="pair",
            ),
        )


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


def _paste(out: UInt8[np.ndarray, "side side 3"], image: Pixels, box: Sequence[float]) -> None:
    """Draws the part of the image that is not white as large as it fits into the box."""
    left, top, width, height = box
    shown = ink_box(image)
    if shown is None:
        return
    sides = shown[2] - shown[0], shown[3] - shown[1]
    scale = min(width / sides[0], height / sides[1])
    size = [max(1, round(scale * side)) for side in sides]
    drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=shown)
    at = [round(left + (width - size[0]) / 2), round(top + (height - size[1]) / 2)]
    out[at[1] : at[1] + size[1], at[0] : at[0] + size[0]] = np.asarray(drawn)


def _record(
    varied: bool,
    original: Record,
    *,
    words: tuple[Words, ...],
    colours: tuple[str, ...],
    joint: str = "and",
    **changes: Any,
) -> Record:
    """The record of an original with changes, whose captions are varied or plain."""
    record = dataclasses.replace(original, **changes)
    if varied:
        return EmojiRecord.of(record, words=words, colours=colours, joint=joint)
    return record
