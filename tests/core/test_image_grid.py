"""Every pixel of a sheet is where it belongs; captions stay under their picture; files are whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import grid, save_png, side_by_side


def pictures(n, h=4, w=5):
    return np.random.default_rng(0).integers(0, 200, (n, h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("n,columns", [(1, 1), (6, 3), (5, 3), (2, 8)])
@pytest.mark.parametrize("scale,gap", [(1, 0), (3, 2)])
def test_every_picture_is_in_its_cell(n, columns, scale, gap):
    x = pictures(n)
    sheet = grid(x, columns, scale=scale, gap=gap)
    per_row = min(columns, n)
    rows = (n + per_row - 1) // per_row
    assert sheet.shape == (rows * (4 * scale + gap) + gap, per_row * (5 * scale + gap) + gap, 3)
    rest = sheet.astype(int)
    for i in range(n):
        for y in range(4 * scale):
            for z in range(5 * scale):
                at = (
                    gap + i // per_row * (4 * scale + gap) + y,
                    gap + i % per_row * (5 * scale + gap) + z,
                )
                assert (sheet[at] == x[i, y // scale, z // scale]).all()
                rest[at] = 255
    assert (rest == 255).all()  # white elsewhere


LONG = (
    "a person with red fro hair, yellow skin, side eyes, grimace mouth, wearing a pale blue shirt "
    * 3
)


@pytest.mark.parametrize("caption", ["one word", LONG, "x" * 300, "Grüße"])
def test_captions_are_under_their_own_picture(caption):
    x = np.full((3, 32, 32, 3), 200, np.uint8)
    sheet = grid(x, 3, captions=["", caption, ""])
    y, z = np.nonzero((sheet < 150).all(-1))
    cell = sheet.shape[1] / 3
    assert len(y) > 20  # there is ink,
    assert cell <= z.min() and z.max() < 2 * cell  # in the middle column,
    assert y.min() > 96  # under the picture, enlarged threefold,
    assert y.max() < sheet.shape[0] - 1  # and whole
    assert not (sheet[: 6 + 96] < 150).any()


def test_a_short_caption_is_not_cut_and_a_long_one_says_so():
    ink = lambda text: (grid(pictures(1) * 0 + 200, 1, captions=[text]) < 150).sum()
    assert ink("one two") > ink("one")
    assert (
        grid(pictures(1), 1, captions=[LONG]) == grid(pictures(1), 1, captions=[LONG + LONG])
    ).all()
    words = LONG.split()
    assert ink(" ".join(words[:8])) > ink(" ".join(words[:7]))


def test_reconstructions_are_under_their_originals():
    x, y = pictures(5), 255 - pictures(5)
    sheet = side_by_side(x, y, columns=3, gap=0)
    assert sheet.shape == (16, 15, 3)
    for i in range(5):
        top, left = i // 3 * 8, i % 3 * 5
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 5], x[i])
        np.testing.assert_array_equal(sheet[top + 4 : top + 8, left : left + 5], y[i])
    assert (sheet[8:, 10:] == 255).all()


def test_png_files_say_how_they_were_made(tmp_path):
    x = pictures(1)[0]
    save_png(tmp_path / "new/folder/a.png", x, {"prompt": "a café ☃", "seed": "3"})
    with Image.open(tmp_path / "new/folder/a.png") as image:
        assert image.text == {"prompt": "a café ☃", "seed": "3"}
        np.testing.assert_array_equal(np.array(image), x)
    save_png(str(tmp_path / "new/folder/a.png"), 255 - x)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new/folder/a.png")), 255 - x)
    assert [p.name for p in (tmp_path / "new/folder").iterdir()] == ["a.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    x = pictures(1)[0]
    save_png(tmp_path / "a.png", x)

    def full(path, content):
        path.open("wb").write(content[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="a.png: No space left on device"):
        save_png(tmp_path / "a.png", 255 - x)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), x)


def test_bad_places_and_sizes_are_told(tmp_path):
    x = pictures(2)
    with pytest.raises(UserError, match=f"cannot write the picture {tmp_path}: Is a directory"):
        save_png(tmp_path, x[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the picture .*file/a.png"):
        save_png(tmp_path / "file/a.png", x[0])
    with pytest.raises(UserError, match="got 2 images, 0 columns"):
        grid(x, 0)
    with pytest.raises(UserError, match="got 1 for 2"):
        grid(x, 2, captions=["a"])
