"""The examples of the second stage: captions that lose words, deterministically, and never all."""

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.batches import (
    image_loader,
    indices,
    pair_loader,
    randomly_drop_words,
    training_indices,
)
from vqd_jax.data.source import Record
from vqd_jax.data.text.bpe import BytePair

CAPTIONS = ("a google style emoji of a red apple", "red apple, google style")


class Apples:
    """Twelve records without images."""

    records = [
        Record(item=f"apple {i}", style="google", captions=CAPTIONS, split="train")
        for i in range(12)
    ]
    fingerprint, skipped = "apples", {}

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        raise AssertionError("no picture is needed")


def loader(drop_words, seed=0):
    tokenizer = BytePair.train(CAPTIONS, vocabulary=300, length=24)
    tokens = np.arange(12 * 4).reshape(12, 4)
    return tokenizer, pair_loader(
        Apples(),
        tokens,
        lambda image, rng: image,
        tokenizer,
        drop_words=drop_words,
        batch_size=12,
        seed=seed,
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_each_word_is_left_out_with_its_probability_and_in_order(share):
    words, rng = CAPTIONS[0].split(), np.random.default_rng(0)
    kept = [randomly_drop_words(CAPTIONS[0], share, rng).split() for _ in range(4000)]
    assert min(map(len, kept)) >= 1
    expected = len(words) * (1 - share) + share ** len(words)  # one that stays when all would go
    assert abs(np.mean([len(k) for k in kept]) - expected) < 0.08
    for some in kept[:200]:
        rest = iter(words)
        assert all(word in rest for word in some)  # a subsequence


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_what_is_no_probability_is_one_sentence(share):
    with pytest.raises(UserError, match=r"data.drop_words is a probability in \[0, 1\), got"):
        loader(share)


def test_the_loader_gives_whole_captions_or_fewer_words_of_them():
    tokenizer, plain = loader(0.0)
    assert {tokenizer.decode(row) for step in range(4) for row in plain[step]["text"]} == set(
        CAPTIONS
    )
    _, fewer = loader(0.3)
    texts = [tokenizer.decode(row) for step in range(4) for row in fewer[step]["text"]]
    assert len(set(texts)) > 10 and all(
        set(t.split()) <= set(" ".join(CAPTIONS).split()) and t for t in texts
    )
    np.testing.assert_array_equal(fewer[3]["text"], loader(0.3)[1][3]["text"])
    assert (fewer[3]["text"] != loader(0.3, seed=1)[1][3]["text"]).any()
    assert sorted(fewer[0]["tokens"][:, 0].tolist()) == list(range(0, 48, 4))


class Variants(Apples):
    """Four originals, two of them held out, and variants in every split."""

    records = [
        Record(item=str(i), captions=(f"apple {i}",), split=split, part=part)
        for i, (split, part) in enumerate(
            [
                ("train", "original"),
                ("held_out_cells", "original"),
                ("train", "original"),
                ("held_out_items", "original"),
                ("train_variants", "recoloured"),
                ("held_out_colours", "recoloured"),
                ("train_variants", "pair"),
                ("held_out_pairs", "pair"),
            ]
        )
    ]

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 3), i, np.uint8)}


def test_variants_are_trained_on_and_counted_apart():
    source = Variants()
    assert training_indices(source) == [0, 2, 4, 6] and indices(source, "train") == [0, 2]
    loader = image_loader(source, lambda image, rng: image, batch_size=4, seed=0)
    assert sorted(loader[0]["image"][:, 0, 0, 0].tolist()) == [0, 2, 4, 6]
    tokenizer = BytePair.train([f"apple {i}" for i in range(8)], vocabulary=300, length=24)
    same = lambda image, rng: image
    tokens = np.zeros((8, 1), np.int32)
    texts = pair_loader(source, tokens, same, tokenizer, batch_size=4, seed=0)[0]["text"]
    assert {tokenizer.decode(row) for row in texts} == {"apple 0", "apple 2", "apple 4", "apple 6"}


class Counting(Record):
    """Draws a caption that is none of `captions`."""

    def draw_caption(self, rng):
        return f"apple number {rng.integers(10)}"


@pytest.mark.parametrize("drop_words", [0.0, 1e-9])
def test_a_record_may_draw_its_caption(drop_words):
    class Drawn(Apples):
        records = [Counting(item=str(i), captions=("apple",)) for i in range(12)]

    tokenizer = BytePair.train(["apple number 0123456789"], vocabulary=300, length=24)
    options = dict(batch_size=12, seed=3, drop_words=drop_words)
    tokens = np.zeros((12, 1), np.int32)
    loader = pair_loader(Drawn(), tokens, lambda image, rng: image, tokenizer, **options)
    for row in range(12):  # the generator of a position is that of (seed, 1, position)
        want = np.random.default_rng((3, 1, 12 + row)).integers(10)
        assert tokenizer.decode(loader[1]["text"][row]) == f"apple number {want}"
