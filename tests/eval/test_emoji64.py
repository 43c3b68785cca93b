"""The parts of the protocol emoji64, for models that draw what is asked, something else, or nothing:
100 %, 0 %, and chance.
"""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers.workdirs import make_workdir
from vqd_jax.data import splits
from vqd_jax.data.batches import Resized
from vqd_jax.data.emoji_captions import caption, captions, phrase
from vqd_jax.data.emoji_synonyms import SYNONYMS
from vqd_jax.data.emoji_wording import coloured, wordings
from vqd_jax.data.hues import COLOURS, HUES, rgb
from vqd_jax.data.source import Record
from vqd_jax.data.transforms import Resize
from vqd_jax.eval import emoji64
from vqd_jax.eval.evaluation import Evaluation
from vqd_jax.eval.evaluator import PRIMARY, Evaluator
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.image_regions import half, trimmed
from vqd_jax.eval.protocols import PROTOCOLS
from vqd_jax.inference import pipeline

SIZE, STYLES = 32, ("google", "twitter")
NAMES = ("dog", "horse", "rabbit", "snake", "frog", "turtle", "elephant", "alien", "ghost", "taxi")
MEANT = {word for word, name in SYNONYMS.items() if name in NAMES}


def drawn(name, style, colour="red"):
    """A shape for each name, finer in one style, in a colour on white."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {style}".encode()).digest()[:4], "big")
    cells = 4 if style == "google" else 8
    shape = np.random.default_rng(seed).random((cells, cells)) < 0.6
    shape[[0, -1], 0] = shape[0, -1] = True
    shape = np.pad(shape.repeat(24 // cells, 0).repeat(24 // cells, 1), 4)
    hue = np.full(shape.shape, HUES[COLOURS.index(colour)])
    pixels = rgb(hue, np.ones(shape.shape), np.ones(shape.shape))
    return np.where(shape[..., None], pixels, np.uint8(255))


class Shapes:
    """Originals, recoloured ones and pairs, all with their caption."""

    fingerprint, skipped = "shapes", {}

    def __init__(self):
        self.records, self.images = [], []
        for style in STYLES:
            for name in NAMES:
                self.add(drawn(name, style), captions(name, style), name, style, "train")
        for style in STYLES:
            for name in NAMES:
                for colour in COLOURS[1:]:
                    self.add(
                        drawn(name, style, colour),
                        captions(coloured(name, colour), style),
                        name,
                        style,
                        splits.COLOURS,
                        "recoloured",
                    )
        for style in STYLES:
            for n, first in enumerate(NAMES):
                for joint, second in (("and", NAMES[n - 1]), ("with", NAMES[n - 2])):
                    what = f"{phrase(first)} {joint} {phrase(second)}"
                    halves = [drawn(name, style)[::2, ::2] for name in (first, second)]
                    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
                    image[3:19, :16], image[10:26, 16:] = halves
                    group = f"{first}+{second}"
                    self.add(image, wordings(what, style), group, style, splits.PAIRS, "pair")

    def add(self, image, captions, group, style, split, part="original"):
        self.images.append(image)
        self.records.append(
            Record(item=group, captions=captions, group=group, style=style, split=split, part=part)
        )

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i].example(self.images[i])


class Drawer(pipeline.TextToImage):
    """A model that draws `answers[prompt]`, and whose codec is exact."""

    def batches(self, prompts, batch, *, seed=0, start=0, **settings):
        for first in range(start, len(prompts), batch):
            yield np.stack([self.answers[p] for p in prompts[first : first + batch]])

    def encode(self, images):
        known = {image.tobytes(): i for i, image in enumerate(self.shapes.images)}
        numbers = np.array([known[image.tobytes()] for image in images])
        return np.stack([numbers // 20**i % 20 for i in range(4)], 1)

    def decode(self, tokens, *, devices=0):
        return np.stack([self.shapes.images[i] for i in tokens @ 20 ** np.arange(4)])


def pixels(params, images):
    """Features that differ between all images; 0 for white ones."""
    ink = 255 - images.astype(jnp.float32)
    return ink.reshape(images.shape[0], -1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return pipeline.load(
        make_workdir(tmp_path_factory.mktemp("model"), {"data.image_size": SIZE})
    ), Shapes()


@pytest.fixture
def evaluation(loaded, tmp_path):
    def make(answers, images=40):
        model, shapes = loaded
        drawer = object.__new__(Drawer)
        vars(drawer).update(vars(model) | {"answers": answers, "shapes": shapes})
        network = Extractor(name="pixels", params={}, embed=pixels)
        protocol = dataclasses.replace(PROTOCOLS["emoji64"], images=images)
        out = Evaluation(
            model=drawer,
            evaluator=Evaluator(
                protocol=protocol, networks={PRIMARY: network, "retrieval": network}
            ),
            cache=tmp_path / "cache",
            settings={},
        )
        vars(out)["source"] = Resized(shapes, Resize(size=SIZE))
        return out

    return make


def asked(shapes):
    """Each prompt that the protocol can ask, with the image that shows it."""
    by_caption = {r.captions[0]: image for r, image in zip(shapes.records, shapes.images)}
    out = dict(by_caption)
    for style in ("", *STYLES):
        for thing in emoji64.OBJECTS:
            for colour in COLOURS:
                name = f"{colour} {thing}"
                out[caption(name, style) if style else name] = drawn(thing, "google", colour)
        for word in MEANT:
            right = by_caption[caption(SYNONYMS[word], style or STYLES[0])]
            out[caption(word, style) if style else f"an emoji of {phrase(word)}"] = right
    return out


SHARES = {
    "colours": ("retrieval@1", "retrieval@5", "style_accuracy", "colour_accuracy"),
    "free_colours": ("colour_accuracy",),
    "two_things": ("first_retrieval@1", "second_retrieval@1", "both_retrieval@1"),
    "synonyms": ("retrieval@1", "retrieval@5"),
}


def test_a_model_that_draws_what_is_asked_has_100_percent(loaded, evaluation, tmp_path):
    how = evaluation(asked(loaded[1]))
    parts = emoji64.drawn_parts(how, tmp_path, 16)
    assert parts.keys() == SHARES.keys()
    for name, part in parts.items():
        for row in ("generated", "ceiling"):
            got, n = part.result[row], part.result["images"]
            assert {key: got[key] for key in SHARES[name]} == dict.fromkeys(SHARES[name], 1.0)
            count = n if name != "free_colours" or row == "generated" else 40
            wilson = stats.binomtest(count, count).proportion_ci(method="wilson")
            for key in SHARES[name]:
                assert got[f"{key}_interval"] == pytest.approx([wilson.low, 1])
        assert len(part.prompts) == len(part.images) == part.result["images"]
    found = parts["colours"].result["generated"]
    assert found["chance@1"] == pytest.approx(1 / (len(NAMES) * 6))
    assert parts["synonyms"].result["generated"]["chance@1"] == pytest.approx(1 / len(NAMES))
    assert parts["synonyms"].result["words"] == len(MEANT)
    chosen = [how.source.records[i] for i in how.half_of(splits.COLOURS)]
    assert {splits.half(r.split, r.group, r.style) for r in chosen} == {"test"}
    assert all(" with " not in prompt for prompt in parts["two_things"].prompts)
    free = parts["free_colours"].prompts
    assert len(free) == 40 and {p.split()[0] for p in free} == set(COLOURS)  # round 0: no style


def test_images_equal_to_those_of_their_records_have_no_kernel_distance(
    loaded, evaluation, tmp_path
):
    """Neither better nor worse than real images."""
    part = evaluation(asked(loaded[1])).evaluate_split("train", tmp_path, 16)
    for row in ("generated", "ceiling"):
        assert part.result[row]["vgg_kid"] == pytest.approx(0, abs=1e-12)
        assert part.result[row]["retrieval@1"] == part.result[row]["style_accuracy"] == 1
    assert part.result["generated"]["chance@1"] == pytest.approx(1 / len(NAMES))


def test_a_model_that_draws_something_else_has_0_percent(loaded, evaluation, tmp_path):
    """The answers of other prompts: another thing in another colour, and things exchanged."""
    shapes = loaded[1]
    right = asked(shapes)
    wrong = {}
    for prompt in right:
        words = [w for w in prompt.split() if w in COLOURS]
        colour = COLOURS[(COLOURS.index(words[0]) + 3) % 7] if words else "red"
        wrong[prompt] = drawn("nothing of these", "google", colour)
    for record, image in zip(shapes.records, shapes.images):
        if record.part == "pair":
            wrong[record.captions[0]] = np.concatenate([image[:, 16:], image[:, :16]], 1)
    # nearest to another emoji than the meant one
    for style in ("", *STYLES):
        for word in MEANT:
            other = NAMES[NAMES.index(SYNONYMS[word]) - 1]
            key = caption(word, style) if style else f"an emoji of {phrase(word)}"
            wrong[key] = drawn(other, style or STYLES[1])
    parts = emoji64.drawn_parts(evaluation(wrong), tmp_path, 16)
    for name, part in parts.items():
        got = part.result["generated"]
        for key in set(SHARES[name]) - {"retrieval@5", "style_accuracy"}:
            if name == "colours" and key == "retrieval@1":
                assert got[key] < 0.1  # the shape may be near another one
            else:
                assert got[key] == 0, (name, key)
        assert part.result["ceiling"][SHARES[name][0]] == 1


def test_white_images_have_the_score_of_chance(loaded, evaluation, tmp_path):
    white = dict.fromkeys(asked(loaded[1]), np.full((SIZE, SIZE, 3), 255, np.uint8))
    parts = emoji64.drawn_parts(evaluation(white), tmp_path, 16)
    for name in ("colours", "synonyms"):
        got = parts[name].result["generated"]
        assert got["retrieval@1"] == pytest.approx(got["chance@1"])
        assert got["retrieval@5"] == pytest.approx(got["chance@5"])
    assert parts["colours"].result["generated"]["style_accuracy"] == pytest.approx(1 / 2)
    assert parts["colours"].result["generated"]["colour_accuracy"] == 0
    two = parts["two_things"].result["generated"]
    assert two["first_retrieval@1"] == pytest.approx(1 / len(NAMES))
    assert two["both_retrieval@1"] == pytest.approx(1 / len(NAMES) ** 2)


def test_images_in_the_folder_are_not_drawn_again(loaded, evaluation, tmp_path):
    """A stopped run goes on with the same bits: the second model would draw others."""
    first = emoji64.free_colours(evaluation(asked(loaded[1])), tmp_path, 16).result
    second = emoji64.free_colours(evaluation({}), tmp_path, 16).result
    assert first == second and first["generated"]["colour_accuracy"] == 1


def test_a_set_without_such_records_has_no_such_parts(loaded, evaluation, tmp_path):
    how = evaluation(asked(loaded[1]))
    shapes = Shapes()
    shapes.records, shapes.images = shapes.records[:20], shapes.images[:20]
    vars(how)["source"] = Resized(shapes, Resize(size=SIZE))
    parts = emoji64.drawn_parts(how, tmp_path, 16)
    assert parts.keys() == {"free_colours", "synonyms"}
    assert "ceiling" not in parts["free_colours"].result


def test_what_a_half_shows_is_cropped_and_centred():
    image = np.full((20, 30, 3), 255, np.uint8)
    image[5:9, 2:10] = (200, 0, 0)
    got = trimmed(half(image, 0), 16)
    assert got.shape == (16, 16, 3)
    np.testing.assert_array_equal(got[4:12], np.broadcast_to((200, 0, 0), (8, 16, 3)))
    assert (got[:4] == 255).all() and (got[12:] == 255).all()
    assert (trimmed(half(image, 1), 16) == 255).all()
