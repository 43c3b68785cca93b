import math

import numpy as np
import pytest
from scipy.stats import entropy

from vqd_jax.core.errors import UserError
from vqd_jax.eval.scores import clip_score, inception_score


def test_inception_score_of_known_distributions():
    assert inception_score(np.ones((20, 7)), splits=2) == pytest.approx((1, 0))
    certain = 1e4 * np.eye(5)[np.arange(20) % 5]
    assert inception_score(certain, splits=4, seed=None) == pytest.approx((5, 0))
    assert inception_score(1e4 * np.repeat(np.eye(5), 4, axis=0), splits=1) == pytest.approx((5, 0))


def test_inception_score_is_exp_of_the_mean_divergence_in_each_split():
    logits = np.random.default_rng(0).normal(0, 3, (23, 6)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)

    def score(part):
        return math.exp(np.mean([entropy(row, part.mean(axis=0)) for row in part]))

    each = [
        score(part) for part in (p[:7], p[7:15], p[15:])
    ]  # 23 * 1 // 3 = 7 and 23 * 2 // 3 = 15
    assert inception_score(logits, splits=3, seed=None) == pytest.approx(
        (np.mean(each), np.std(each)), rel=1e-12
    )
    assert inception_score(logits + 500, splits=3, seed=None) == pytest.approx(
        (np.mean(each), np.std(each)), rel=1e-4
    )


def test_shuffling_keeps_the_images_and_mixes_those_made_class_by_class():
    by_class = 20 * np.repeat(np.eye(4), 50, axis=0)
    assert inception_score(by_class, splits=4, seed=None) == pytest.approx((1, 0), abs=1e-6)
    mean, deviation = inception_score(by_class, splits=4, seed=1)
    assert 3.5 < mean < 4 and deviation > 0
    assert inception_score(by_class, splits=1, seed=1)[0] == pytest.approx(
        inception_score(by_class, splits=1, seed=None)[0], rel=1e-12
    )


def test_clip_score_of_known_angles():
    images = np.array([[1.0, 0], [1, 0], [1, 0], [2, 2]])
    texts = np.array([[3.0, 0], [0, 1], [-1, 0], [0, 5]])
    assert clip_score(images, texts) == pytest.approx(
        100 * (1 + 0 + 0 + math.sqrt(0.5)) / 4, rel=1e-12
    )
    assert clip_score(images[2:3], texts[2:3]) == 0


def test_bad_input_is_an_error():
    x = np.ones((3, 2))
    with pytest.raises(UserError, match="generated images must be of at least 10 images, got 3"):
        inception_score(x)
    with pytest.raises(UserError, match="at least one split, got 0"):
        inception_score(x, splits=0)
    with pytest.raises(UserError, match="generated images must be finite"):
        inception_score(x * np.nan, splits=1)
    with pytest.raises(UserError, match="one text for each image, got 3 images and 2 texts"):
        clip_score(x, x[:2])
    with pytest.raises(UserError, match="one width, got 2 and 1"):
        clip_score(x, x[:, :1])
    with pytest.raises(UserError, match="texts must not be zero"):
        clip_score(x, 0 * x)
