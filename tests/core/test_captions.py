"""Captions in many scripts: nothing is drawn with a font that lacks it, and ASCII as ever."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from vqd_jax.core import captions, fonts
from vqd_jax.core.image_grid import caption_metadata, grid

SCRIPTS = {
    "Latin": "Grüße, ça va? — “x”",
    "Greek": "γάτα με καπέλο",
    "Cyrillic": "кошка в шляпе",
    "Arabic": "قطة صغيرة",
    "Hebrew": "חתול אדום",
    "Devanagari": "बिल्ली टोपी",
    "Chinese": "一只红色的猫",
    "Japanese": "赤い猫がいる",
    "Korean": "빨간 고양이",
    "emoji": "🐱 👩‍🚀 👍🏽 ❤️ 🇩🇪",
}


def text(caption):
    return ["".join(letter.text for letter in line) for line in caption.lines]


def with_fonts(monkeypatch, *others):
    monkeypatch.setattr(fonts, "_packaged", lambda: [fonts.own(), *others])
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())


@pytest.fixture
def dejavu():
    """The fonts of a machine that has DejaVu Sans, as with matplotlib."""
    pytest.importorskip("matplotlib")
    return next(fonts._in_package("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"))


def test_what_a_font_has(dejavu):
    own, emoji = fonts.own(), fonts.openmoji()
    assert own.has("a") and own.has("…") and not own.has("é") and not own.has("猫")
    assert dejavu.has("é") and dejavu.has("e\u0301") and dejavu.has("ق") and not dejavu.has("猫")
    assert (
        emoji.has("🐱") and emoji.has("👩\u200d🚀") and not emoji.has("a") and not emoji.has("猫")
    )
    for font in (own, dejavu, emoji):
        assert not any(map(font.has, ("\ud800", "\x07", "\ue000", "\U0010ffff")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_caption_is_drawn_by_fonts_that_have_it_or_names_its_image(script, monkeypatch, dejavu):
    with_fonts(monkeypatch, dejavu)
    caption = captions.layout(SCRIPTS[script], 300, "image 7")
    assert caption.complete == (script not in ("Devanagari", "Chinese", "Japanese", "Korean"))
    assert text(caption) == [SCRIPTS[script] if caption.complete else "image 7"]
    with_fonts(monkeypatch)
    caption = captions.layout(SCRIPTS[script], 300, "image 7")
    assert caption.complete == (script == "emoji")
    if script != "emoji":
        assert {*" ".join(text(caption)).split()} <= {*"image 7 ca va? “x”".split()}


def test_only_what_cannot_be_drawn_is_replaced_and_that_is_said_once(monkeypatch, caplog):
    with_fonts(monkeypatch)
    captions.warn_once.cache_clear()
    mixed = captions.layout("best 0.97: 一只红色的 猫 in 1️⃣ café 猫", 500, "image 3")
    assert text(mixed) == ["best 0.97: image 3 in 1 cafe image 3"] and not mixed.complete
    x = np.zeros((4, 8, 8, 3), np.uint8)
    sheets = [grid(x, 4, captions=["", "", last, "a"]) for last in ("一只 猫", "image 3")]
    np.testing.assert_array_equal(*sheets)
    assert [record.getMessage() for record in caplog.records] == [captions.REMEDY]


def test_the_text_of_a_file_keeps_captions_that_cannot_be_drawn(monkeypatch):
    with_fonts(monkeypatch)
    assert caption_metadata(["a red cat", "x" * 999, ""]) == {}
    stored = caption_metadata(["a", "一只猫"], "captions of test")
    assert json.loads(stored["captions of test"]) == ["a", "一只猫"] and "一只猫" in str(stored)


def test_ascii_is_drawn_as_a_whole_with_pillows_font():
    line = captions.layout('a "red" cat, 100 % (x)', 500, "").lines[0]
    drawn, wanted = (Image.new("RGB", (200, 30), "white") for _ in range(2))
    captions.draw_line(ImageDraw.Draw(drawn), 100, 5, line)
    ImageDraw.Draw(wanted).text(
        (100, 5),
        'a "red" cat, 100 % (x)',
        fill=captions.INK,
        font=ImageFont.load_default(12),
        anchor="ma",
    )
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(wanted))


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow without libraqm")
def test_arabic_is_joined_and_runs_from_right_to_left(monkeypatch, dejavu):
    with_fonts(monkeypatch, dejavu)
    drawn = Image.new("RGB", (120, 30), "white")
    line = captions.layout("قطة 🐱", 100, "").lines[0]
    captions.draw_line(ImageDraw.Draw(drawn), 60, 5, line)
    pixels = np.asarray(drawn).astype(int)
    coloured = np.nonzero(np.ptp(pixels, axis=-1) > 60)[1]
    grey = np.nonzero((np.ptp(pixels, axis=-1) < 5) & (pixels[..., 0] < 150))[1]
    assert len(coloured) > 20 and coloured.max() < np.median(grey)  # the emoji comes last
    joined = sum(map(dejavu.length, ["قطة"]))
    assert joined < sum(map(dejavu.length, "قطة"))


def test_without_shaping_no_script_that_needs_it_is_drawn(monkeypatch, dejavu):
    with_fonts(monkeypatch, dejavu)
    monkeypatch.setattr(fonts.features, "check", lambda name: False)
    complete = {name: captions.layout(words, 300, "").complete for name, words in SCRIPTS.items()}
    assert complete["Greek"] and complete["Cyrillic"]
    assert not complete["Arabic"] and not complete["Hebrew"] and not complete["Devanagari"]


def test_letters_keep_their_marks_and_emoji_their_modifiers():
    for word, letters in {
        "e\u0301a": ["e\u0301", "a"],
        "👩‍🚀👍🏽❤️": ["👩‍🚀", "👍🏽", "❤️"],
        "बिल्ली": ["बि", "ल्", "ली"],
        "1️⃣2": ["1️⃣", "2"],
    }.items():
        assert captions._letters(word) == letters
    lines = captions.layout("👩‍🚀" * 5, 35, "").lines
    assert [len(line) for line in lines] == [2, 2, 1]


def test_joiners_are_no_boxes():
    for words, shown in {"a\u200bb \u200d": "ab ", "\ufeffcat\u200e": "cat"}.items():
        lines = captions.layout(words, 200, "").lines
        assert [*map("".join, [[letter.text for letter in line] for line in lines])] == [shown]


def test_fonts_of_boxes_are_not_taken(monkeypatch, tmp_path):
    """Such as Last Resort, which has a box for every character."""
    manager = pytest.importorskip("matplotlib.font_manager")
    folder = fonts.Path(manager.__file__).parent / "mpl-data/fonts/ttf"
    boxes = next(folder.glob("LastResort*"), None)
    files = [
        "x/Zed-Bold.ttf",
        "x/Zed-Regular.ttf",
        "x/AdobeBlank.otf",
        str(boxes or "LastResort.ttf"),
    ]
    monkeypatch.setattr(manager, "findSystemFonts", lambda: files)
    fonts._system_fonts.cache_clear()
    try:
        assert fonts._system_fonts() == ["x/Zed-Regular.ttf", "x/Zed-Bold.ttf"]
    finally:
        fonts._system_fonts.cache_clear()
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts.Font.read(tmp_path / "broken.ttf") is None


@given(st.text(max_size=40), st.integers(10, 200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_drawn_by_fonts_that_have_it(words, width):
    caption = captions.layout(words, width, "image 1")
    draw = ImageDraw.Draw(Image.new("RGB", (250, 150), "white"))
    for k, line in enumerate(caption.lines):
        captions.draw_line(draw, 125, k * caption.line_height, line)
        assert all(letter.text == " " or letter.font.has(letter.text) for letter in line)
    assert len(caption.lines) <= captions.LINES
