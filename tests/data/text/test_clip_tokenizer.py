"""CLIP's tokenizer against byte-pair encoding written out, on a made-up vocabulary of the published
size and layout.
"""

import base64
import gzip
import importlib.util
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from helpers.clip_files import LETTERS, MERGES, VOCABULARY, write_folder
from vqd_jax.core.errors import UserError
from vqd_jax.data.text.clip import ClipTokenizer, clean
from vqd_jax.data.text.load import load_tokenizer


def expected(caption):
    """Greedy merging by rank, for captions of lower-case letters, digits, punctuation and single
    spaces.
    """
    ranks, ids = {merge: i for i, merge in enumerate(MERGES)}, []
    for word in re.findall(r"'s|'t|[a-z]+|[0-9]|[^\sa-z0-9]+", caption):
        parts = [*word[:-1], word[-1] + "</w>"]
        while best := min(
            ((ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks),
            default=None,
        ):
            i = best[1]
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        ids += [VOCABULARY[part] for part in parts]
    row = [49406, *ids[:75], 49407]
    return row + [0] * (77 - len(row))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clip"), VOCABULARY, MERGES)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ClipTokenizer.load(folder)


def test_what_is_not_read_is_told(tokenizer):
    abc = len(tokenizer.words("abc")[0][1])
    whole = "abc " * (75 // abc)
    assert tokenizer.unread([whole, whole + "abc ABC", ""])[::2] == ["", ""]
    assert tokenizer.unread([whole + "abc " * 75])[0].split()[-1] == "abc"
    assert tokenizer.unread([]) == []


def test_layout(tokenizer):
    abc, empty, long = tokenizer(["abc ab !", "", "abc " * 80])
    assert (tokenizer.length, tokenizer.vocabulary, tokenizer.pad, abc.dtype) == (
        77,
        49408,
        0,
        np.int32,
    )
    pair = [VOCABULARY["a"], VOCABULARY["b</w>"]]
    assert abc.tolist() == [49406, 512 + 676 + 28, *pair, VOCABULARY["!</w>"], 49407] + [0] * 71
    assert empty.tolist() == [49406, 49407] + [0] * 75
    assert long.tolist() == [49406] + [512 + 676 + 28] * 75 + [49407]
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer.decode(abc) == "abc ab !" and tokenizer.decode(empty) == ""


def test_words_have_the_places_of_their_tokens(tokenizer):
    caption = "abc xyzzy's 12 ab"
    found, ids = tokenizer.words(caption), tokenizer([caption])[0]
    assert [word for word, _ in found] == ["abc", "xyzzy", "'s", "1", "2", "ab"]
    assert [place for _, places in found for place in places] == [
        *range(1, ids.tolist().index(49407))
    ]
    assert [len(places) for word, places in found if word == "xyzzy"][0] > 1 and tokenizer.words(
        ""
    ) == []
    assert tokenizer.words("abc " * 80) == [("abc", [i]) for i in range(1, 76)]


def test_ids_equal_byte_pair_encoding_written_out(tokenizer):
    rng = random.Random(0)

    def word():
        return "".join(rng.choices(LETTERS, k=rng.randint(1, 9)))

    captions = [
        " ".join(
            rng.choice([word(), "12", word() + "'s", word() + "-" + word(), "!?"]) for _ in range(n)
        )
        for n in range(1, 40)
    ]
    np.testing.assert_array_equal(tokenizer(captions), [expected(caption) for caption in captions])


def test_the_openai_file_gives_the_same_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    extra = ["un used"] * 5  # the published file goes on after the merges in use
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *map(" ".join, MERGES), *extra]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert ClipTokenizer.load(path).to_json() == tokenizer.to_json()


def test_json_round_trip(tokenizer):
    stored = tokenizer.to_json()
    again = load_tokenizer(stored)
    assert again.to_json() == stored and len(stored) < 1_500_000
    np.testing.assert_array_equal(again(["abc, a teapot 猫"]), tokenizer(["abc, a teapot 猫"]))


@pytest.mark.parametrize(
    "caption, cleaned",
    [
        ("  A \tPhoto\n of  CATS ", "a photo of cats"),
        ("fish &amp;amp; chips &lt;3", "fish & chips <3"),
        ("It’s “so” ﬁne", 'it\'s "so" fine'),
        ("ＡＢＣ\u3000ｄ", "abc d"),
        ("cafe\u0301", "café"),
        ("a\x00b\ufeff", "ab"),
        ("&ldquo;a&rdquo;&nbsp;b", '"a" b'),
        ("ŉ", "'n"),
        ("a\udcff", "a\ufffd"),
    ],
)
def test_cleaning(caption, cleaned):
    assert clean(caption) == cleaned


def test_every_script_encodes(tokenizer):
    ids = tokenizer(["猫 кошка قطة 🐈\u200d⬛", "\udcff", "\x00"])
    assert (ids[:, 0] == 49406).all() and ((ids == 49407).sum(1) == 1).all()


@pytest.mark.parametrize(
    "vocabulary, merges, words",
    [
        ({"<|startoftext|>": 0, "<|endoftext|>": 1}, [], "2 tokens"),
        (VOCABULARY, MERGES[:-1], "48893 merges"),
        (VOCABULARY, [*MERGES[:-1], ("a", "☃")], "does not fit"),
        ({name: 49407 - i for name, i in VOCABULARY.items()}, MERGES, "not CLIP's"),
        ({name: [i] for name, i in VOCABULARY.items()}, MERGES, "0 tokens"),
        ([1], MERGES, "holds a list, not an object"),
        (VOCABULARY, [*MERGES[:-1], ("a", "b" * 10**6)], "the merge 'a b{97}…' does not fit"),
    ],
)
def test_a_wrong_vocabulary_is_refused(tmp_path, vocabulary, merges, words):
    with pytest.raises(UserError, match=f"clip.*{words}"):
        ClipTokenizer.load(write_folder(tmp_path / "clip", vocabulary, merges))


def test_wrong_paths_are_refused(tokenizer, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gz").write_text("not gzip")
    whole = gzip.compress(b"a b\nc d" * 99)
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    (tmp_path / "wrong.gz").write_bytes(whole[:12] + b"\xff" * 9 + whole[21:])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**25)))
    for path in [
        "openai/clip-vit-base-patch32",
        tmp_path / "empty",
        tmp_path / "text.gz",
        tmp_path / "cut.gz",
        tmp_path / "wrong.gz",
        tmp_path / "bomb.gz",
    ]:
        with pytest.raises(UserError, match="vocab.json and merges.txt, or OpenAI's"):
            ClipTokenizer.load(path)
    with pytest.raises(UserError, match="at least 3"):
        ClipTokenizer.load(folder, length=2)
    with pytest.raises(UserError, match="a list of captions"):
        tokenizer("a cat")
    with pytest.raises(UserError, match="to_json"):
        ClipTokenizer.from_json('{"kind": "clip", "length": 77, "vocabulary_and_merges": "AAAA"}')
    packed = base64.b64encode((tmp_path / "bomb.gz").read_bytes()).decode()
    with pytest.raises(UserError, match="more than 16,777,216 bytes"):
        ClipTokenizer.from_json(json.dumps({"length": 77, "vocabulary_and_merges": packed}))


def test_the_published_vocabulary():
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip, which ships CLIP's vocabulary, is not installed")
    tokenizer = ClipTokenizer.load(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz")
    ids = tokenizer(["a photo of a cat"])[0]
    assert ids.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70
