"""The trained tokenizer: any string survives a round trip, and training depends on nothing but the
captions.
"""

import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqd_jax.core.errors import UserError
from vqd_jax.data.text.bpe import BytePair
from vqd_jax.data.text.labels import Nothing
from vqd_jax.data.text.load import load_tokenizer, told_cut, unread
from vqd_jax.inference.prompts import conditioning
from vqd_jax.samplers.guidance import GuidanceConfig

CAPTIONS = [
    f"{article} {style} emoji of a {colour} {thing}"
    for article in ("a", "the")
    for style in ("google", "twitter")
    for colour in ("red", "dark blue", "rosé")
    for thing in ("apple", "teapot", "cat face", "house", "猫", "🍎")
]


@pytest.fixture(scope="module")
def tokenizer():
    return BytePair.train(CAPTIONS, vocabulary=300, length=16)


@pytest.fixture(scope="module")
def long_tokenizer():
    return BytePair.train(CAPTIONS, vocabulary=300, length=400)


def test_layout(tokenizer):
    ids = tokenizer(["the red teapot", "", "emoji " * 40])
    assert ids.shape == (3, 16) and ids.dtype == np.int32
    assert ids[1].tolist() == [1, 2] + [0] * 14
    assert (
        ids[2, 0] == 1 and ids[2, -1] == 2 and len(set(ids[2, 1:-1])) == 1
    )  # "emoji" is frequent: one token
    used = int((ids[0] != 0).sum())
    assert ids[0, 0] == 1 and ids[0, used - 1] == 2 and (ids[0, 1 : used - 1] > 2).all()
    assert tokenizer.decode(ids[0]) == "the red teapot"
    assert tokenizer([]).shape == (0, 16)


def test_one_slot_too_many_is_cut_and_none_too_few_is_not(tokenizer):
    fits, cut = tokenizer(["emoji " * 14, "emoji " * 14 + "x"])
    assert tokenizer.decode(fits).split() == ["emoji"] * 14
    assert fits.tolist() == cut.tolist()


def test_words_have_the_same_ids_wherever_they_stand(tokenizer):
    first, second = tokenizer(["teapot apple", "apple teapot"])
    assert sorted(first) == sorted(second)
    spaced, plain = tokenizer(["  RED\u00a0\u3000Apple\t\x1c\n", "red apple"])
    assert spaced.tolist() == plain.tolist()


@pytest.mark.parametrize(
    "caption,words",
    [
        (
            "a  Google style emoji of a TEAPOT",
            ["a", "google", "style", "emoji", "of", "a", "teapot"],
        ),
        ("", []),
        ("it's (new)", ["it's", "(new)"]),
        ("猫 🍎 собака", ["猫", "🍎", "собака"]),
    ],
)
def test_words_have_the_places_of_their_tokens(long_tokenizer, caption, words):
    found, ids = long_tokenizer.words(caption), long_tokenizer([caption])[0]
    assert [word for word, _ in found] == words
    assert [place for _, places in found for place in places] == [
        *range(1, np.flatnonzero(ids == 2)[0])
    ]
    assert [long_tokenizer.decode(ids[places]) for _, places in found] == words


def test_words_that_are_cut_off_have_no_place(tokenizer):
    assert [places for _, places in tokenizer.words("emoji " * 20)] == [[i] for i in range(1, 15)]


def test_what_is_not_read_is_told(tokenizer):
    captions = ["emoji " * 14, "emoji " * 14 + "Red Teapot", "", "a red apple"]
    assert tokenizer.unread(captions) == unread(tokenizer, captions) == ["", "red teapot", "", ""]
    assert told_cut(tokenizer, captions * 3) == (
        "1 of 4 captions are longer than the 16 tokens that are read (learned_text.length): their "
        "ends have no effect"
    )
    assert told_cut(tokenizer, ["a red apple"]) == told_cut(tokenizer, []) == ""
    assert unread(Nothing(), ["a"]) == [""]


def test_the_words_of_a_prompt_that_are_not_read_are_named(tokenizer, caplog):
    prompts = ["emoji " * 14 + "red teapot", "a red apple AND " + "emoji " * 14 + "house :0.5"]
    conditioning("text", tokenizer, prompts, "", GuidanceConfig(guidance=2.0))
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "red teapot",
        "house",
    ]
    assert "a prompt is longer than the 16 tokens that are read" in caplog.text


def settled(c):
    """Whether every version of Unicode that a library may have gives the character the same NFKC
    form.
    """
    return unicodedata.ucd_3_2_0.category(c) != "Cn" or unicodedata.normalize("NFKC", c) == c


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cn", "Cs"]).filter(settled), max_size=30))
def test_every_string_survives(long_tokenizer, caption):
    ids = long_tokenizer([caption])[0]
    inside = ids[1 : np.flatnonzero(ids == 2)[0]]
    assert (inside > 2).all() and (inside < long_tokenizer.vocabulary).all()
    expected = "".join(c.lower() for c in unicodedata.normalize("NFKC", caption))
    assert long_tokenizer.decode(ids) == " ".join(expected.split())


@pytest.mark.parametrize(
    "caption, read",
    [
        (
            "<pad> [PAD] </s> <|endoftext|>",
            "<pad> [pad] </s> <|endoftext|>",
        ),  # text never becomes a special token
        ("x \udcff y", "x \ufffd y"),
        ("\ud83d\ude00", "😀"),
        ("\x00", "\x00"),
    ],
)
def test_hostile_captions(long_tokenizer, caption, read):
    assert long_tokenizer.decode(long_tokenizer([caption])[0]) == read


def test_training_ignores_the_order_and_the_process(tokenizer):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert (
        BytePair.train(iter(shuffled), vocabulary=300, length=16).to_json() == tokenizer.to_json()
    )
    script = (
        "import sys; from vqd_jax.data.text.bpe import BytePair; captions = "
        "eval(sys.stdin.read()); "
        "print(BytePair.train(captions, vocabulary=300, length=16).to_json())"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        input=ascii(shuffled),
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == tokenizer.to_json()


def test_vocabulary_is_what_was_asked_or_what_there_was(tokenizer):
    assert tokenizer.vocabulary == 300
    assert (
        BytePair.train(["ab"], vocabulary=1024, length=8).vocabulary == 261
    )  # 3 + 256 + "Ġa", "Ġab"


def test_json_round_trip(tokenizer):
    again = load_tokenizer(tokenizer.to_json())
    assert (again.length, again.vocabulary, again.pad) == (16, 300, 0)
    assert (again(CAPTIONS) == tokenizer(CAPTIONS)).all() and again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t: BytePair.train([]), "no captions"),
        (lambda t: BytePair.train(["a"], vocabulary=258), "at least 259"),
        (lambda t: BytePair.train(["a"], length=2), "at least 3"),
        (lambda t: t("a cat"), "a list of captions"),
        (lambda t: BytePair.from_json('{"kind": "byte-pair", "length": 8}'), "to_json"),
        (
            lambda t: BytePair.from_json(
                '{"kind": "byte-pair", "length": 8, "merges": {"model": 3}}'
            ),
            "to_json",
        ),
        (lambda t: BytePair.from_json("["), "to_json"),
    ],
)
def test_bad_input_is_one_sentence(tokenizer, call, words):
    with pytest.raises(UserError, match=words):
        call(tokenizer)
