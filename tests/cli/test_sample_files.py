"""What `vqd sample` reads prompts from, and the files that it writes."""

import numpy as np
import pytest
from PIL import Image

from helpers.commands import run_in_process
from helpers.workdirs import MODELS, make_workdir
from vqd_jax.cli.sample import _sheet
from vqd_jax.core import png
from vqd_jax.core.image_grid import save_picture, save_png
from vqd_jax.inference.prompts import split_prompt
from vqd_jax.inference.request import KEY


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("files") / "run", MODELS["text"])


def sample(workdir, *flags, ok=True):
    calls = [] if any("--like" in flag for flag in flags) else ["--calls=1"]
    return run_in_process("sample", f"--workdir={workdir}", *calls, *flags, ok=ok)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_file_of_prompts_and_a_file_for_each_image(workdir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa dog\n\n  a cat\r\n", encoding="utf-8")
    out = tmp_path / "images"
    (out / "kept").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(out / "00006.png")
    flags = [f"--prompts_file={prompts}", "--prompt=a fish", "--num=2", f"--out={out}/"]
    assert "6 images in " in sample(workdir, *flags).stdout
    names = [f"{i:05d}.png" for i in range(6, 13)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "kept"]
    assert pixels(out / "00006.png").shape == (4, 4, 3)  # what was there is not touched
    # each file has its request
    sample(workdir, f"--like={out}/00010.png", f"--out={tmp_path}/again.png")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(out / "00010.png"))
    sample(workdir, f"--like={out}/00010.png", f"--out={tmp_path}/one/")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00000.png"]


@pytest.mark.parametrize("ending,format_", [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_ending_decides_the_format(tmp_path, ending, format_):
    path, image = tmp_path / f"new/x.{ending}", np.zeros((20, 30, 3), np.uint8)
    save_picture(path, image, {KEY: "{}"})
    with Image.open(path) as saved:
        assert saved.format == format_ and saved.size == (30, 20)
    assert png.text(path.read_bytes(), KEY) == ("{}" if ending == "png" else None)


@pytest.mark.parametrize("num,columns,rows", [(3, 3, 2), (8, 8, 2), (9, 8, 4), (16, 8, 4)])
def test_rows_wrap_and_every_prompt_begins_one(num, columns, rows):
    images = np.zeros((2 * num, 96, 96, 3), np.uint8)
    sheet = _sheet(images, ["a dog", "a cat"], num, 1)
    width = 96 + 6  # and the gap
    assert sheet.shape[1] == columns * width + 6
    assert 0 < sheet.shape[0] - (rows * width + 6) < rows * 24  # captions
    for column in range(columns):  # black from the top of an image to its end
        black = (sheet[:, 6 + column * width + 90] == 0).all(-1)
        images_below = (np.diff(black.astype(int)) == 1).sum()
        assert images_below == 2 * len(range(column, num, columns))


def test_prompts_with_one_image_each_share_rows():
    sheet = _sheet(np.zeros((10, 96, 96, 3), np.uint8), [f"dog {i}" for i in range(10)], 1, 1)
    width = 96 + 6
    assert sheet.shape[1] == 8 * width + 6 and 2 * width < sheet.shape[0] < 3 * width
    ink = [(sheet[96 + 8 : width + 20, i * width : (i + 1) * width] < 128).any() for i in range(8)]
    assert all(ink)  # each has its caption


@pytest.mark.parametrize(
    "text,sentence",
    [(b"\xff\xfe\xfa", "is not UTF-8 text"), (b"\n \n", "has no prompts"), (None, "No such file")],
)
def test_a_bad_file_of_prompts_is_one_sentence(workdir, tmp_path, text, sentence):
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text)
    done = sample(workdir, f"--prompts_file={path}", ok=False)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_the_request_of_a_huge_sheet_is_read_without_its_pixels(tmp_path):
    text = "ü" * 2_000_000  # more than Pillow reads of one text
    save_png(tmp_path / "x.png", np.zeros((3, 3, 3), np.uint8), {KEY: text, "other": "x"})
    content = (tmp_path / "x.png").read_bytes()
    assert png.text(content, KEY) == text and png.text(content, "other") == "x"
    assert png.text(content, "none") is None
    for cut in (0, 5, 40, len(content) // 2):
        assert png.text(content[:cut], KEY) is None


@pytest.mark.parametrize(
    "prompt,blend",
    [
        ("a cat AND a dog :0.5", [("a cat", 1.0), ("a dog", 0.5)]),
        ("a cat:2 AND a dog", [("a cat", 2.0), ("a dog", 1.0)]),
        ("10:30 AND a clock", [("10:30", 1.0), ("a clock", 1.0)]),
        ("SALT AND PEPPER", [("SALT AND PEPPER", 1.0)]),
        ("a SANDcastle: 3 towers", [("a SANDcastle: 3 towers", 1.0)]),
    ],
)
def test_blends_and_weights_only_where_they_are_meant(prompt, blend):
    assert split_prompt(prompt) == blend
