"""Images to measure in folders and .npz files, and the pages of images of several sizes."""

import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.eval import page
from vqd_jax.eval.collect import batches
from vqd_jax.eval.evaluator import Scored
from vqd_jax.eval.image_sets import open_images


def draw(n, width, height):
    return np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for n, size in enumerate([(6, 5), (6, 5), (9, 4)]):
        Image.fromarray(draw(n, *size)).save(tmp_path / f"{n}.png")
    return tmp_path


def test_images_of_several_sizes_are_read_where_they_may_be(folder):
    images = open_images(folder, mixed=True)
    np.testing.assert_array_equal(images[2], draw(2, 9, 4))
    parts = [*batches(images.subset([0, 1, 2]), 2)]
    assert parts[0].shape == (2, 5, 6, 3) and [x.shape for x in parts[1]] == [(4, 9, 3)]
    parts = [*batches(images.subset([0, 2, 1]), 2)]
    assert [x.shape for x in parts[0]] == [(5, 6, 3), (4, 9, 3)] and parts[1].shape[0] == 1


def test_elsewhere_the_sentence_says_which_protocols_take_them(folder):
    images = open_images(folder)
    np.testing.assert_array_equal(images[1], draw(1, 6, 5))
    with pytest.raises(
        UserError,
        match="0.png has 6 x 5 pixels and 2.png 9 x 4; measures compare images of one size, except "
        "for the protocols clean and cmmd",
    ):
        images[2]
    (folder / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1.png cannot be read \(it is empty or no image\)$"):
        images[1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_array(tmp_path, save):
    x = np.stack([draw(n, 6, 5) for n in range(4)])
    save(tmp_path / "a.npz", x, np.arange(4))  # guided-diffusion adds the classes
    images = open_images(tmp_path / "a.npz")
    assert len(images) == 4
    np.testing.assert_array_equal(np.concatenate([*batches(images, 3)]), x)
    some = images.subset([3, 1]).subset([1])
    assert len(some) == 1
    np.testing.assert_array_equal(some[0], x[1])


@pytest.mark.parametrize(
    "arrays,sentence",
    [
        ({"other": np.zeros(3)}, "does not hold images as the array arr_0 of an .npz file"),
        (
            {"arr_0": np.zeros((2, 4, 4, 3))},
            r"uint8 of shape .*, got float64 of shape \(2, 4, 4, 3",
        ),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, r"got uint8 of shape \(2, 4, 4, 4\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"got uint8 of shape \(0, 4, 4, 3\)"),
        ({"arr_0": np.array([{}], object)}, r"got object of shape \(1,\)"),
    ],
)
def test_arrays_that_are_no_images_are_one_sentence(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=f"a.npz .*{sentence}"):
        open_images(tmp_path / "a.npz")


def test_a_page_shows_images_of_several_sizes_undistorted(folder):
    images = open_images(folder, mixed=True)
    scored = Scored(result={}, images=images, prompts=[], kernel=np.zeros(0), similarity=None)
    sheet, _ = page.page({"pictures": scored}, 0)
    assert (sheet == images[0].repeat(16, 0).repeat(16, 1)[0, 0]).all(-1).any()
    wide = page._fitted(images[2], 6, 5)
    assert wide.shape == (5, 6, 3) and (wide[[0, 4]] == 255).all() and not (wide[2] == 255).all()
