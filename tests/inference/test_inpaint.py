"""Repainting, varying and extending real emoji with the shipped model: what is known stays, what is
not changes.
"""

import numpy as np
import pytest
from PIL import Image, ImageColor

from vqd_jax.core.errors import UserError
from vqd_jax.data.transforms import Reference, Resize
from vqd_jax.inference import inpaint
from vqd_jax.inference.inpaint import EditImage, edit, windows

SAMPLERS = {
    "ancestral": {},
    "counts": {"order": "confidence"},
    "remask": {"eta": 0.2},
    "released_fast": {},
    "prior_rule": {"rule": 1},
}


@pytest.fixture(scope="module")
def picture(model):
    return model("a google style emoji of a red apple", calls=10, output="np")


@pytest.mark.parametrize(
    "name",
    [
        "ancestral",
        "counts",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("remask", "released_fast", "prior_rule")
        ),
    ],
)
@pytest.mark.parametrize("seed", [0, 5])
def test_outside_of_the_mask_nothing_changes(model, picture, name, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    repaint = (y - 12) ** 2 + (x - rng.integers(8, 24)) ** 2 < 60  # a disc
    out = edit(
        model,
        EditImage(picture, repaint),
        ["a twitter style emoji of a dog"] * 2,
        seed=seed,
        sampler=name,
        calls=5,
        **SAMPLERS[name],
    )
    cells = repaint.reshape(8, 4, 8, 4).any((1, 3)).repeat(4, 0).repeat(4, 1)
    for image in out:
        np.testing.assert_array_equal(image[~cells], picture[~cells])
    assert (out[:, cells] != picture[cells]).any()


@pytest.mark.slow  # 10 s
def test_strength_says_how_much_changes(model, picture):
    """With `counts`, which keeps what is not masked at the start; ancestral steps may doubt every
    token.
    """
    start, prompts = model.encode(picture[None]), ["a twitter style emoji of a crab"] * 8
    image = start.repeat(8, axis=0)
    tokens = [
        model.tokens(prompts, image=image, strength=strength, sampler="counts", calls=5)
        for strength in (0.1, 0.5, 1.0)
    ]
    same = [(t == start).mean() for t in tokens]
    assert same[0] >= 1 - round(6.4) / 64 and same[0] > same[1] > same[2]
    far = [np.abs(model.decode(t).astype(float) - picture).mean() for t in (tokens[0], tokens[2])]
    assert 2 * far[0] < far[1]


def test_a_larger_image_is_painted_window_by_window(model, picture):
    image = np.pad(picture, ((0, 16), (8, 8), (0, 0)), constant_values=255)
    repaint = np.ones(image.shape[:2], bool)
    repaint[:32, 8:40] = False
    out = edit(model, EditImage(image, repaint), ["a google style emoji of a tree"], calls=4)
    assert out.shape == (1, 48, 48, 3)
    np.testing.assert_array_equal(out[0, :32, 8:40], picture)
    cells = out[0].reshape(12, 4, 12, 4, 3)
    assert (cells[8:].std((1, 3)).max(-1) > 2).any()  # the border is painted, not left white
    again = edit(model, EditImage(image, repaint), ["a google style emoji of a tree"], calls=4)
    np.testing.assert_array_equal(out, again)


def test_windows_cover_what_is_open_and_begin_where_most_is_known():
    todo = np.ones((12, 20), bool)
    todo[2:10, 2:10] = False
    places = windows(todo, 8)
    covered = np.zeros_like(todo)
    for y, x in places:
        covered[y : y + 8, x : x + 8] = True
    assert covered[todo].all() and len(set(places)) == len(places)
    first = todo[places[0][0] : places[0][0] + 8, places[0][1] : places[0][1] + 8]
    assert 0 < first.sum() <= 32
    assert windows(np.zeros((8, 8), bool), 8) == []


@pytest.fixture
def files(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "apple.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(0 * mask).save(tmp_path / "black.png")
    wide = np.zeros((64, 192, 3), np.uint8)
    for third in range(3):
        wide[:, 64 * third : 64 * third + 64, third] = 255
    Image.fromarray(wide).resize((36, 12)).save(tmp_path / "wide.png")
    Image.new("L", (32, 64), "white").save(tmp_path / "tall.png")
    left = Image.new("L", (36, 12))
    left.paste(255, (0, 0, 4, 12))
    left.save(tmp_path / "left.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "apple.png").read_bytes()[:200])
    return tmp_path


SQUARE = Resize(size=32)


def test_edit_images_from_files(files, picture):
    edit_image = inpaint.read_edit_image(
        str(files / "apple.png"), str(files / "mask.png"), [], SQUARE
    )
    np.testing.assert_array_equal(edit_image.image, picture)
    assert edit_image.mask[:16].all() and not edit_image.mask[16:].any()
    assert inpaint.read_edit_image(str(files / "apple.png"), None, [], SQUARE).mask.all()
    larger = inpaint.read_edit_image(str(files / "apple.png"), None, ["4", "0", "8", "12"], SQUARE)
    assert (
        larger.image.shape == (44, 44, 3)
        and not larger.mask[:32, 4:36].any()
        and larger.mask.sum() == 44 * 44 - 32 * 32
    )
    np.testing.assert_array_equal(larger.image[:32, 4:36], picture)


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (("gone.png", None, []), "there is no image"),
        (("broken.png", None, []), "not an image that can be read"),
        (("apple.png", "black.png", []), "marks nothing"),
        (("apple.png", "tall.png", []), "mask has 32 x 64 pixels and other proportions than the"),
        (("wide.png", "left.png", []), "marks nothing of the 32 x 32 pixels that are left"),
        (("apple.png", None, ["1", "2"]), "takes four numbers"),
        (("apple.png", None, ["0", "0", "0", "0"]), "not all 0"),
        (("apple.png", None, ["-4", "0", "0", "0"]), "not negative"),
    ],
)
def test_bad_files_are_one_sentence(files, arguments, sentence):
    init, mask, extend = arguments
    with pytest.raises(UserError, match=sentence):
        inpaint.read_edit_image(str(files / init), mask and str(files / mask), extend, SQUARE)


STROKE = np.s_[8:16, 4:20]


@pytest.mark.parametrize("colour", ["white", "black", "red"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strokes_on_a_transparent_layer_are_the_mask(files, colour, mode):
    layer = Image.new("RGBA", (32, 32))
    layer.paste(colour, (4, 8, 20, 16))
    if mode == "P":  # an index that is transparent, as GIF and small PNG files have
        layer = Image.new("P", (32, 32), 1)
        layer.putpalette([*ImageColor.getrgb(colour), 0, 255, 0])
        layer.paste(0, (4, 8, 20, 16))
        layer.save(files / "layer.png", transparency=1)
    else:
        layer.convert(mode).save(files / "layer.png")
    mask = inpaint.read_edit_image(
        str(files / "apple.png"), str(files / "layer.png"), [], SQUARE
    ).mask
    wanted = np.zeros((32, 32), bool)
    wanted[STROKE] = True
    np.testing.assert_array_equal(mask, wanted)


def test_a_mask_that_covers_everything_is_told(files, caplog):
    Image.new("L", (32, 32), "white").save(files / "white.png")
    Image.new("RGBA", (32, 32), "white").save(files / "opaque.png")
    for name in ("white.png", "opaque.png"):
        caplog.clear()
        arguments = str(files / "apple.png"), str(files / name), [], SQUARE
        assert inpaint.read_edit_image(*arguments).mask.all()
        assert f"{name} covers all of the image: everything is repainted" in caplog.text


@pytest.mark.parametrize("transform", [Resize, Reference])
def test_a_wide_image_and_its_mask_become_the_same_square(files, transform):
    """Red, green and blue thirds: the square is the green one, the mask covers green and blue."""
    square = transform(size=32)
    inpaint_wide = lambda mask, size=64, **kwargs: inpaint.make_edit_image(
        np.asarray(Image.open(files / "wide.png").resize((3 * size, size))),
        mask,
        [],
        square,
        **kwargs,
    )
    right = np.zeros((64, 192), bool)
    right[32:, 96:] = True
    out = inpaint_wide(right, large=False)
    assert (out.image[4:28, 4:28] == (0, 255, 0)).all()
    assert out.mask[16:, 16:].all() and out.mask.sum() == 16 * 16
    own = np.zeros((32, 32), bool)
    own[:, :8] = True  # a mask of the square itself
    np.testing.assert_array_equal(inpaint_wide(own, large=False).mask, own)
    small = inpaint_wide(right, size=16)  # smaller than the model, with a larger mask
    assert small.mask[16:, 16:].all() and small.mask.sum() == 16 * 16
    assert inpaint_wide(right).image.shape == (64, 192, 3)  # painted window by window


def test_an_image_must_fit_the_cells(model, picture):
    with pytest.raises(UserError, match="multiples of 4, got 33 x 32"):
        edit(model, EditImage(np.zeros((32, 33, 3), np.uint8), np.ones((32, 33), bool)), ["a"])
    with pytest.raises(UserError, match=r"strength must lie in \(0, 1\], got 2"):
        edit(model, EditImage(picture, np.ones((32, 32), bool)), ["a"], strength=2.0)
