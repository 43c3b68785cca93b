"""Retrieval of drawn images during training: of the validation half, among the real images of the
style, by fixed noise.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.config.defaults import defaults
from vqd_jax.data.batches import Resized, indices
from vqd_jax.data.source import Record
from vqd_jax.eval import validation
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.validation import DrawnRetrieval, codec_measures, validation_records
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.guidance import GuidanceConfig

STYLES = ("google", "twitter")


@dataclasses.dataclass
class Pictures:
    """A hundred groups in two styles, random images; a third of them is held out in one style."""

    records: list[Record] = dataclasses.field(
        default_factory=lambda: [
            Record(
                item=f"{i} {style}",
                group=str(i),
                style=style,
                captions=(f"{i} AND {style}",),
                split="held_out_cells" if i % 3 == 0 and j else "train",
            )
            for i in range(100)
            for j, style in enumerate(STYLES)
        ]
    )
    fingerprint: str = "pictures"
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3))
        return self.records[i].example(pixels.astype(np.uint8))


SOURCE = Resized(Pictures(), lambda image, rng: image)


class Stage:
    """Not a model: `drawn` below stands for it."""

    codec: Any = None


class Tokenizer:
    """The captions' indices in `texts`."""

    length, vocabulary, pad = 1, 1000, 0

    def __init__(self):
        self.texts = []

    def __call__(self, captions):
        self.texts.extend(captions)
        return np.array([[len(caption)] for caption in captions])

    def words(self, caption):
        return []

    def to_json(self):
        return "{}"


@pytest.fixture
def measure(monkeypatch):
    """The measures when each prompt is answered with the image of `answers(record)`, and what the
    sampler was asked.
    """

    def run(answers, images):
        asked = []

        def drawn(stage, weights, conditions, scales, *, seed, first, **_):
            rows = conditions.ids.shape[1]
            asked.append((seed, first, rows, float(scales.min())))
            chosen = validation_records(SOURCE, images)
            picked = [chosen[min(first + i, len(chosen) - 1)] for i in range(rows)]
            return np.array([answers(i) for i in picked])

        decode = lambda stage, codec, tokens, devices: np.stack(
            [SOURCE[int(i)]["image"] for i in tokens]
        )
        pixels = Extractor(
            name="pixels", params={}, embed=lambda _, x: x.reshape(len(x), -1).astype(jnp.float32)
        )
        monkeypatch.setattr(validation.sampling, "sample", drawn)
        monkeypatch.setattr(validation.jitted, "decode", decode)
        monkeypatch.setattr(validation, "efficientnet_lite0", lambda: pixels)
        monkeypatch.setattr(validation, "ROWS", 8)
        tokenizer = Tokenizer()
        evaluate = object.__new__(DrawnRetrieval)  # whose types a stub of a stage does not have
        fields = dict(
            stage=Stage(),
            source=SOURCE,
            codec={},
            tokenizer=tokenizer,
            sampler=Ancestral(calls=1),
            guidance_config=GuidanceConfig(guidance=2.0),
            images=images,
        )
        for name, value in fields.items():
            object.__setattr__(evaluate, name, value)
        return evaluate({"w": np.zeros(1)}), asked, tokenizer.texts

    return run


def test_right_images_are_retrieved(measure):
    found, asked, texts = measure(lambda i: i, 100)
    chosen = indices(SOURCE, "held_out_cells/validation")
    assert 8 < len(chosen) < 34 and set(texts[: len(chosen)]) <= {
        f"{SOURCE.records[i].group} and twitter" for i in chosen
    }
    assert found["retrieval@1"] == found["retrieval@5"] == found["style_accuracy"] == 1
    assert found["chance@1"] == pytest.approx(0.01) and found["chance@5"] == pytest.approx(0.05)
    assert {(seed, scale) for seed, _, _, scale in asked} == {(0, 2.0)}
    rows = asked[0][2]
    assert [first for _, first, *_ in asked] == [*range(0, len(chosen), rows)] and rows <= 8


def test_wrong_ones_are_not(measure):
    """The other style of the group is not of the prompt's style, other groups are no hits."""
    found = measure(lambda i: i - 1, 5)[0]
    assert found["style_accuracy"] == 0 and found["retrieval@1"] < 0.5
    found = measure(lambda i: (i + 2) % len(SOURCE), 5)[0]
    assert found["retrieval@1"] == 0 and found["style_accuracy"] == 1


def test_a_part_is_drawn_or_nothing(measure):
    found, asked, _ = measure(lambda i: i, 3)
    assert found["retrieval@1"] == 1 and sum(rows for *_, rows, _ in asked) == 3
    assert measure(lambda i: i, 0)[0] == {}


def test_items_where_there_are_no_pairs():
    source = Pictures([dataclasses.replace(r, split="held_out_items") for r in SOURCE.records])
    chosen = validation_records(source, 10)
    assert len(chosen) == 10 and {*chosen} < {*indices(source, "held_out_items/validation")}
    assert validation_records(Pictures([]), 10) == []


@pytest.mark.parametrize(
    "examples,lpips,size,want",
    [
        (8, True, 32, ["psnr", "ssim", "lpips"]),
        (8, False, 32, ["psnr", "ssim"]),
        (8, True, 8, ["psnr", "lpips"]),
        (0, True, 32, []),
    ],
)
def test_measures_of_a_codec(examples, lpips, size, want):
    held_out = defaults().held_out
    held_out.examples, held_out.lpips = examples, lpips
    assert codec_measures(held_out, size) == want
