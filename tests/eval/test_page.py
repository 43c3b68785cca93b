"""What an evaluation prints and plots."""

import dataclasses
import json

import numpy as np
import pytest

from vqd_jax.core import fonts
from vqd_jax.eval import page
from vqd_jax.eval.evaluator import Scored, SimilarityReport


def scored(values, kernel):
    images = np.zeros((len(values), 8, 8, 3), np.uint8)
    similarity = SimilarityReport(
        meaning="similarity", values=values, nearest=[0] * len(values), images=images
    )
    return Scored(result={}, images=images, prompts=[""] * 8, kernel=kernel, similarity=similarity)


def test_equal_values_have_a_histogram(tmp_path):
    """As of a folder against itself, its copy, or black images: equal up to rounding."""
    for value in (0.0, 1.0, -3e8):
        values = np.full(9, value, np.float32)
        near = np.where(np.arange(9) % 2, values, np.nextafter(values, np.float32(np.inf)))
        for equal in (values, near):
            edges = page._edges(equal.astype(np.float64))
            assert (np.diff(edges) > 0).all() and np.histogram(equal, edges)[0].sum() == 9
    np.testing.assert_array_equal(page._edges(np.array([1.0, 3.0])), np.linspace(1, 3, 41))
    pytest.importorskip("matplotlib")
    page.plot({"pictures": scored(near, np.zeros(4))}, tmp_path / "plots.png")
    assert (tmp_path / "plots.png").exists()


def test_captions_that_no_font_has_are_in_the_text_of_the_page(monkeypatch):
    monkeypatch.setattr(fonts, "_packaged", lambda: [fonts.own()])
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    part = scored(np.zeros(8), np.zeros(0))
    assert page.page({"test": part}, 0)[1] == {}
    part = dataclasses.replace(part, prompts=["一只猫"] * 8, similarity=None)
    texts = page.page({"plain": scored(np.zeros(8), np.zeros(0)), "test": part}, 0)[1]
    assert texts.keys() == {"captions of test"}
    assert json.loads(texts["captions of test"]) == ["test, random: 一只猫"] * 8


def test_measures_come_with_their_intervals():
    result = {
        "test": {
            "images": 500,
            "generated": {
                "retrieval@1": 0.5,
                "retrieval@1_interval": [0.25, 0.75],
                "chance@1": 0.1,
                "vgg_kid": 0.02,
                "vgg_kid_interval": [-0.01, 0.05],
                "vgg_kid_std": 0.3,
                "vgg_kid_subset_size": 20,
                "inception_score": 9.5,
                "inception_score_std": 0.25,
            },
        },
        "bound": {
            "train": {
                "nats_per_token": 1.0,
                "bits_per_token": 1.4427,
                "bits_per_token_interval": [1.4, 1.5],
                "bits_per_token_standard_error": 0.02,
                "images": 3,
            }
        },
        "reconstruction": {"psnr": 22.288, "psnr_interval": [22.0, 22.5], "codes_in_use": 1.0},
    }
    assert page.table(result, ["test"]).splitlines() == [
        "test (500)                retrieval@1 50.0% [25.0%, 75.0%]  "
        "vgg_kid 0.0200 [-0.0100, 0.0500]  inception_score 9.5000 (std 0.2500)",
        "bound, train: 1.000 nats = 1.443 [1.400, 1.500] bits per token",
        "reconstruction: psnr 22.29 [22, 22.5], codes_in_use 1",
        "[low, high]: 95 % intervals, which take images as independent draws",
    ]
