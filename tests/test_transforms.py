"""Crops and scales against pixel counts done by hand."""
import numpy as np
import pytest
from PIL import Image

from vqd_jax.data.transforms import RandomCrop, Resize
from vqd_jax.errors import UserError

RNG = np.random.default_rng(0)


def test_resize_is_shorter_side_to_size_then_centre_crop():
    image = np.asarray(Image.fromarray(RNG.integers(0, 256, (10, 25, 3), dtype=np.uint8)).resize((100, 40)))
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
        np.testing.assert_array_equal(out, image[top:top + 64, left:left + 64])
    assert out.shape == (64, 64, 3)


def test_resize_is_antialiased():
    """A one-pixel checkerboard shrunk 8× is grey, not black or white."""
    board = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    assert abs(Resize(size=8)(board).astype(int) - 127.5).max() < 3


def test_resize_enlarges_and_ignores_the_rng():
    image = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Resize(size=32)(image, np.random.default_rng(1)), Resize(size=32)(image))


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
        side = (x1 - x0) / 9 * 10                    # pixel centres span 9 of 10 cells
        assert abs(side - (y1 - y0) / 9 * 10) < 3    # a square, up to rounding to uint8
        boxes.append((side, (x0 + x1) / 2, (y0 + y1) / 2))
    side, cx, cy = np.array(boxes).T
    assert 47 < side.min() < 54 and 96 < side.max() < 103
    assert cx.min() < 45 and cx.max() > 155 and cy.min() < 35 and cy.max() > 65


def test_random_crop_without_freedom_or_rng_is_resize():
    image = coordinates(48, 60)
    want = Resize(size=16)(image)
    np.testing.assert_array_equal(RandomCrop(size=16, scale=1.0, shift=0.0)(image, np.random.default_rng(3)), want)
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


@pytest.mark.parametrize("make", [lambda: Resize(size=0), lambda: RandomCrop(size=8, scale=0.0),
                                  lambda: RandomCrop(size=8, shift=2.0)])
def test_bad_arguments(make):
    with pytest.raises(UserError):
        make()
