"""The colours of images: conversions against colorsys, and what a colour word means."""

import colorsys

import numpy as np
import pytest

from vqd_jax.data.hues import COLOURS, HUES, classify, colour_of, hsv, rgb, turn


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image[0, :8] = [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0]] * 2
    image[1, :3] = [[255, 255, 0], [0, 255, 255], [255, 0, 255]]
    return image


def test_conversions_are_those_of_the_standard_library(pixels):
    want = np.array([[colorsys.rgb_to_hsv(*(p / 255)) for p in row] for row in pixels])
    hue, saturation, value = hsv(pixels)
    np.testing.assert_allclose(hue, want[..., 0] * 360, atol=1e-3)
    np.testing.assert_allclose(saturation, want[..., 1], atol=1e-6)
    np.testing.assert_allclose(value, want[..., 2], atol=1e-6)
    np.testing.assert_array_equal(rgb(hue, saturation, value), pixels)
    for angle in (-400.0, -28.0, 77.0, 360.0):
        turned = [
            [colorsys.hsv_to_rgb((h + angle / 360) % 1, s, v) for h, s, v in row] for row in want
        ]
        np.testing.assert_allclose(turn(pixels, angle), np.array(turned) * 255, atol=0.51)


def test_every_word_contains_its_typical_hue():
    np.testing.assert_array_equal(classify(np.array(HUES)), np.arange(len(COLOURS)))
    borders = np.array([14.9, 15.0, 344.9, 345.0, 359.9])
    assert [COLOURS[i] for i in classify(borders)] == ["red", "orange", "pink", "red", "red"]


def disc(colour, background=255, side=32, radius=10):
    image = np.full((side, side, 3), background, np.uint8)
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    image[x**2 + y**2 < radius**2] = colour
    return image


@pytest.mark.parametrize(
    "pixel,word",
    [
        ((220, 30, 30), "red"),
        ((230, 20, 60), "red"),
        ((250, 140, 20), "orange"),
        ((250, 220, 30), "yellow"),
        ((30, 160, 60), "green"),
        ((40, 90, 220), "blue"),
        ((130, 50, 200), "purple"),
        ((240, 90, 190), "pink"),
    ],
)
def test_a_disc_has_its_colour(pixel, word):
    colour = colour_of(disc(pixel))
    assert COLOURS[colour.index] == word and colour.share == 1.0
    assert colour.saturated == pytest.approx(np.pi * 100 / 32**2, abs=0.01)
    want = colorsys.rgb_to_hsv(*(np.array(pixel) / 255))[0] * 360
    assert abs((colour.hue - want + 180) % 360 - 180) < 1e-3


def test_greys_have_no_colour_and_shares_are_weighted():
    assert colour_of(disc((90, 90, 90))) == (-1, 0.0, 0.0, 0.0)
    assert colour_of(disc((220, 30, 30), radius=2)).index == -1  # 1 % of the pixels
    image = disc((0, 0, 255))
    image[:, :16] = np.where((image[:, :16] == 255).all(-1)[..., None], 255, [255, 0, 0])
    image[20:, :16] = 255
    colour = colour_of(image)
    counts = [(image == pixel).all(-1).sum() for pixel in ((255, 0, 0), (0, 0, 255))]
    assert COLOURS[colour.index] == "blue"
    assert colour.share == pytest.approx(counts[1] / sum(counts), abs=1e-6)
