"""Crops and scales against pixel counts done by hand."""

import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.transforms import RandomCrop, Reference, Resize

RNG = np.random.default_rng(0)


def test_resize_is_shorter_side_to_size_then_centre_crop():
    image = np.asarray(
        Image.fromarray(RNG.integers(0, 256, (10, 25, 3), dtype=np.uint8)).resize((100, 40))
    )
    out = Resize(size=20)(image)
    assert out.shape == (20, 20, 3) and out.dtype == np.uint8
    want = np.asarray(Image.fromarray(image).resize((50, 20), Image.Resampling.BICUBIC))[:, 15:35]
    assert abs(out.astype(int) - want).max() <= 1


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64), (65, 64)])
def test_resize_of_a_matching_square_changes_nothing(shape):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = Resize(size=64)(image)
    top, left = (shape[0] - 64) // 2, (shape[1] - 64) // 2
    if (shape[0] - 64) % 2 == 0:
        np.testing.assert_array_equal(out, image[top : top + 64, left : left + 64])
    assert out.shape == (64, 64, 3)


def test_resize_is_antialiased():
    """A one-pixel checkerboard shrunk 8× is grey, not black or white."""
    board = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    assert abs(Resize(size=8)(board).astype(int) - 127.5).max() < 3


def test_resize_enlarges_and_ignores_the_rng():
    image = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        Resize(size=32)(image, np.random.default_rng(1)), Resize(size=32)(image)
    )


def coordinates(height, width):
    """An image whose red is x and green is y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def test_random_crop_covers_what_it_says():
    image = coordinates(100, 200)
    crop, rng = RandomCrop(size=10, scale=0.5, shift=1.0), np.random.default_rng(0)
    boxes = []
    for _ in range(300):
        out = crop(image, rng).astype(float)
        x0, x1, y0, y1 = out[5, 0, 0], out[5, -1, 0], out[0, 5, 1], out[-1, 5, 1]
        side = (x1 - x0) / 9 * 10  # pixel centres span 9 of 10 cells
        assert abs(side - (y1 - y0) / 9 * 10) < 3  # a square, up to rounding to uint8
        boxes.append((side, (x0 + x1) / 2, (y0 + y1) / 2))
    side, cx, cy = np.array(boxes).T
    assert 47 < side.min() < 54 and 96 < side.max() < 103
    assert cx.min() < 45 and cx.max() > 155 and cy.min() < 35 and cy.max() > 65


def test_random_crop_without_freedom_or_rng_is_resize():
    image = coordinates(48, 60)
    want = Resize(size=16)(image)
    np.testing.assert_array_equal(
        RandomCrop(size=16, scale=1.0, shift=0.0)(image, np.random.default_rng(3)), want
    )
    np.testing.assert_array_equal(RandomCrop(size=16, scale=0.5)(image), want)


def test_random_crop_depends_on_the_rng_alone():
    image, crop = coordinates(60, 60), RandomCrop(size=16, scale=0.7, flip=True)
    draws = [crop(image, np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_flip_mirrors_half_of_the_time():
    crop, rng = RandomCrop(size=20, scale=1.0, shift=0.0, flip=True), np.random.default_rng(0)
    image = coordinates(40, 40)
    plain = Resize(size=20)(image)
    outs = [crop(image, rng) for _ in range(200)]
    flipped = sum((out == plain[:, ::-1]).all() for out in outs)
    assert flipped + sum((out == plain).all() for out in outs) == 200 and 70 < flipped < 130


class Script(np.random.Generator):
    """A generator that returns given integers and records the requested ranges."""

    def __new__(cls, *answers):
        return super().__new__(cls, np.random.PCG64(0))

    def __init__(self, *answers):
        super().__init__(np.random.PCG64(0))
        self.answers, self.asked = list(answers), []

    def integers(self, low, high, size=None):
        self.asked += [(low, high)] * (size or 1)
        drawn = [self.answers.pop(0) for _ in range(size or 1)]
        return np.array(drawn) if size else drawn[0]


def by_pillow(image, left, top, side, t, x, y, size):
    """The published steps in Pillow: the square, its scaling to t × t, the crop."""
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    return np.asarray(
        square.resize((t, t), Image.Resampling.BICUBIC).crop((x, y, x + size, y + size))
    )


@pytest.mark.parametrize(
    "height,width,want",
    [
        (
            375,
            500,
            [(0, 1), (3 * 125 // 8, 5 * 125 // 8), (256, 289)],
        ),  # d = 125: 46 .. 77; t up to 288
        (500, 333, [(62, 104), (0, 1), (256, 289)]),  # d = 167
        (270, 270, [(0, 1), (0, 1), (256, 271)]),  # no larger than the picture
        (200, 203, [(0, 1), (1, 2), (256, 257)]),  # enlarged to 256 at most
        (256, 1024, [(0, 1), (288, 480), (256, 257)]),
    ],
)
def test_reference_draws_what_was_published_and_cuts_it_so(height, width, want):
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    for pick in (
        lambda low, high: low,
        lambda low, high: high - 1,
        lambda low, high: (low + high) // 2,
    ):
        top, left, t = (pick(low, high) for low, high in want)
        y, x = pick(0, t - 256 + 1), pick(0, t - 256 + 1) // 2
        script = Script(top, left, t, y, x)
        out = Reference(size=256)(image, script)
        assert script.asked == [*want, (0, t - 255), (0, t - 255)] and not script.answers
        np.testing.assert_array_equal(out, by_pillow(image, left, top, side, t, x, y, 256))


def test_reference_with_a_generator_stays_in_the_middle_and_reaches_its_bounds():
    """Of a 16 × 80 picture at size 16 (t 16 or, 16 being the shorter side, nothing else): starts at
    24 .. 39.
    """
    image, rng, reference = coordinates(16, 80), np.random.default_rng(0), Reference(size=16)
    outs = [reference(image, rng) for _ in range(400)]
    starts = [int(out[0, 0, 0]) for out in outs]
    assert {(out.shape, out.dtype) for out in outs} == {((16, 16, 3), np.dtype(np.uint8))}
    assert set(starts) == set(range(24, 40)) and all(
        (out == image[:, s : s + 16]).all() for out, s in zip(outs, starts)
    )
    large = coordinates(200, 200)
    spans = [
        float(out[8, -1, 0]) - float(out[8, 0, 0])
        for out in (reference(large, rng) for _ in range(400))
    ]
    assert (
        15 / 18 * 200 - 4 < min(spans) < max(spans) < 15 / 16 * 200 + 4
    )  # windows of 16 in t = 16, 17, 18
    assert {min((16, 17, 18), key=lambda t: abs(span - 15 / t * 200)) for span in spans} == {
        16,
        17,
        18,
    }
    np.testing.assert_array_equal(
        reference(large, np.random.default_rng(5)), reference(large, np.random.default_rng(5))
    )
    assert not any(
        (out == out[:, ::-1]).all() or out[0, 0, 0] > out[0, -1, 0] for out in outs
    )  # never mirrored


@pytest.mark.parametrize(
    "height,width,scaled",
    [
        (375, 500, (256, 341)),
        (640, 427, (383, 256)),
        (256, 300, (256, 300)),
        (100, 100, (256, 256)),
        (64, 200, (256, 800)),
    ],
)
def test_reference_without_rng_is_the_published_evaluation(height, width, scaled):
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BICUBIC)
    left, top = (scaled[1] - 256) // 2, (scaled[0] - 256) // 2
    np.testing.assert_array_equal(
        Reference(size=256)(image), np.asarray(whole.crop((left, top, left + 256, top + 256)))
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(size=0),
        lambda: Reference(size=0),
        lambda: RandomCrop(size=8, scale=0.0),
        lambda: RandomCrop(size=8, shift=2.0),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(UserError):
        make()
