"""The curves of a run are drawn by the command in its docstring."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqd_jax.runtime.curves import smooth
from vqd_jax.runtime.log import Log

pytest.importorskip("matplotlib")


def draw(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vqd_jax", "curves", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_command_draws_every_stage(tmp_path):
    widths = []
    for names in (["loss"], ["loss", "psnr", "rate"]):
        for stage in ("codec", "prior"):
            log = Log(tmp_path / stage)
            for step in range(80):
                log.write(step, {name: 10.0 ** (-step / 20) for name in names}, prefix="train/")
            log.write(80, {"loss": float("nan")}, prefix="train/")
            log.close()
        result = draw(f"--workdir={tmp_path}", f"--out={tmp_path}/new/curves.png")
        assert result.returncode == 0, result.stderr
        image = np.array(Image.open(tmp_path / "new/curves.png").convert("RGB"))
        assert (image == (0x33, 0x66, 0xCC)).all(-1).sum() > 200  # there are lines
        widths.append(image.shape[1])
    assert widths[0] < widths[1]


def test_bad_input_is_one_sentence(tmp_path):
    result = draw(f"--workdir={tmp_path}", "--out=x.png")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == (
        f"error: there are no metrics to draw in {tmp_path}, "
        f"expected metrics.jsonl in it or in a folder inside it\n"
    )
    log = Log(tmp_path)
    log.write(1, {"loss": 1})
    log.close()
    result = draw(f"--workdir={tmp_path}", f"--out={tmp_path}/x.docx")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr


def test_smoothing_keeps_lines_and_averages_noise():
    np.testing.assert_allclose(smooth(np.full(60, 3.0), 2.0), 3.0)
    line = np.arange(60.0)
    np.testing.assert_allclose(smooth(line, 2.0)[6:-6], line[6:-6])
    noise = np.random.default_rng(0).normal(size=4000)
    assert smooth(noise, 8.0).std() == pytest.approx((2 * np.sqrt(np.pi) * 8) ** -0.5, rel=0.1)
