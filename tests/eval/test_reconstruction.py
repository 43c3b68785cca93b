import math

import numpy as np
import pytest
from scipy.signal import convolve2d
from scipy.stats import entropy

from vqd_jax.core.errors import UserError
from vqd_jax.eval.reconstruction import codebook_use, psnr, ssim


def by_definition(x, y):
    """Equation (13) of Wang et al. 2004 with every window's weights as one 11 x 11 table, a channel
    at a time.
    """
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(z):
        return convolve2d(z, weights, "valid")

    values = []
    for a, b in zip(
        np.moveaxis(x, -1, 0).astype(float), np.moveaxis(y, -1, 0).astype(float), strict=True
    ):
        mu, nu = mean(a), mean(b)
        top = (2 * mu * nu + c1) * (2 * (mean(a * b) - mu * nu) + c2)
        values.append(
            top / ((mu**2 + nu**2 + c1) * (mean(a * a) - mu**2 + mean(b * b) - nu**2 + c2))
        )
    return np.mean(values)


@pytest.mark.parametrize("shape", [(11, 11, 1), (16, 23, 3), (32, 12, 4)])
def test_as_defined(shape):
    random = np.random.default_rng(sum(shape))
    x = random.integers(0, 256, (3, *shape), np.uint8)
    y = np.clip(x + random.normal(0, [[[[10]]], [[[50]]], [[[200]]]], x.shape), 0, 255).astype(
        np.uint8
    )
    assert ssim(x, y) == pytest.approx(
        [by_definition(a, b) for a, b in zip(x, y, strict=True)], rel=1e-10
    )
    assert ssim(y, x) == pytest.approx(ssim(x, y), rel=1e-12)
    assert ssim(x, x) == pytest.approx(1, abs=1e-12)


def test_ssim_of_known_pairs():
    flat = np.full((1, 20, 20, 3), 50, np.uint8)
    c1 = 2.55**2
    assert ssim(flat, flat * 3) == pytest.approx(
        (2 * 50 * 150 + c1) / (50**2 + 150**2 + c1), rel=1e-9
    )
    checked = np.where(np.indices((1, 20, 20, 3)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    assert ssim(checked, 255 - checked) == pytest.approx(-1, abs=0.02)


def test_bad_input_is_an_error():
    x = np.zeros((2, 12, 12, 3), np.uint8)
    with pytest.raises(UserError, match=r"\(2, 12, 12, 3\) and uint8 \(1, 12, 12, 3\)"):
        ssim(x, x[:1])
    with pytest.raises(UserError, match="at least 11 x 11 pixels, got 10 x 12"):
        ssim(x[:, :10], x[:, :10])
    with pytest.raises(UserError, match="two sets"):
        ssim(x[:0], x[:0])
    with pytest.raises(
        UserError, match=r"PSNR needs .* \(2, 12, 12, 3\) and uint8 \(1, 12, 12, 3\)"
    ):
        psnr(x, x[:1])  # which NumPy would broadcast


def test_psnr_of_known_errors():
    x = np.full((3, 4, 4, 3), 100, np.uint8)
    y = x.copy()
    y[1] += 1
    y[2] = 255
    assert psnr(x, y).tolist() == pytest.approx(
        [math.inf, 20 * math.log10(255), 20 * math.log10(255 / 155)]
    )
    assert psnr(x, y).tolist() == psnr(y, x).tolist()  # no wrap-around of bytes


def test_codebook_use():
    tokens = np.array([[0, 0, 1], [3, 3, 3]])
    perplexity, used = codebook_use(tokens, codes=8)
    assert perplexity == pytest.approx(math.exp(entropy([2, 1, 3]))) and used == 3 / 8
    assert codebook_use(np.arange(8), codes=8) == (pytest.approx(8), 1.0)


def test_codebook_use_of_other_tokens_is_an_error():
    with pytest.raises(UserError, match=r"\[0, 4\)"):
        codebook_use(np.array([4]), codes=4)
