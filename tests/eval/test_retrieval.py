from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.stats import binomtest

from vqd_jax.core.errors import UserError
from vqd_jax.eval.retrieval import retrieve

STYLES = ("google", "twitter")


def measured(*arguments, **options):
    return retrieve(*arguments, **options).measures()


def brute(features, groups, styles, gallery, gallery_groups, gallery_styles, k):
    """One image at a time; every order of tied names is as likely as another."""
    found, right = [], []
    for x, group, style in zip(features, groups, styles, strict=True):
        near = {}
        for y, other, its_style in zip(gallery, gallery_groups, gallery_styles, strict=True):
            d = round(cosine(x, y), 8)
            near[its_style, other] = min(d, near.get((its_style, other), 9))

        def expected(candidates, wanted, k):
            better = sum(d < candidates[wanted] for d in candidates.values())
            tied = sum(d == candidates[wanted] for d in candidates.values())
            return Fraction(sum(better + place < k for place in range(tied)), tied)

        nearest = {s: min(d for (t, _), d in near.items() if t == s) for s in set(gallery_styles)}
        found.append(expected({g: d for (s, g), d in near.items() if s == style}, group, k))
        right.append(expected(nearest, style, 1))
    return float(sum(found) / len(found)), float(sum(right) / len(right))


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_equals_brute_force(seed, coarse):
    random = np.random.default_rng(seed)
    gallery_groups = [*"abcde" * 2, *random.choice(list("abcde"), 8)]
    gallery_styles = ["google"] * 5 + ["twitter"] * 5 + random.choice(STYLES, 8).tolist()
    gallery, features = random.normal(size=(18, 4)), random.normal(size=(12, 4))
    if coarse:  # few distinct features: many ties
        gallery = gallery[random.integers(0, 3, 18)]
    groups, styles = random.choice(list("abcde"), 12).tolist(), random.choice(STYLES, 12).tolist()
    scores = measured(
        features, groups, styles, gallery, gallery_groups, gallery_styles, ranks=(1, 2)
    )
    for k in (1, 2):
        found, right = brute(features, groups, styles, gallery, gallery_groups, gallery_styles, k)
        assert scores[f"retrieval@{k}"] == pytest.approx(found)
        assert scores["style_accuracy"] == pytest.approx(right)
        assert scores[f"chance@{k}"] == pytest.approx(k / 5)


def test_real_images_find_themselves_whatever_the_order_and_scale():
    random = np.random.default_rng(0)
    gallery = random.normal(size=(20, 6)).astype(np.float32)
    groups, styles = [f"g{i // 2}" for i in range(20)], [STYLES[i % 2] for i in range(20)]
    order = random.permutation(20)
    mixed = [[labels[i] for i in order] for labels in (groups, styles)]
    scores = measured(gallery[order], *mixed, gallery, groups, styles)
    assert scores["retrieval@1"] == scores["retrieval@5"] == scores["style_accuracy"] == 1
    wilson = binomtest(20, 20).proportion_ci(method="wilson")
    for name in ("retrieval@1", "retrieval@5", "style_accuracy"):
        assert scores[f"{name}_interval"] == pytest.approx([wilson.low, 1])
    lied = measured(gallery, groups[2:] + groups[:2], styles, gallery, groups, styles)
    assert lied["retrieval@1"] == 0 and lied["style_accuracy"] == 1


def test_variants_of_a_group_count_as_one():
    gallery = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1], [-1, -1]], float)
    groups = ["hand", "hand", "hand", "waving", "sun"]
    scores = measured(
        np.array([[1.0, 0.0]]),
        ["waving"],
        ["google"],
        gallery,
        groups,
        ["google"] * 5,
        ranks=(1, 2, 3),
    )
    assert (scores["retrieval@1"], scores["retrieval@2"], scores["chance@1"]) == (
        0,
        1,
        pytest.approx(1 / 3),
    )


def test_featureless_images_score_chance():
    gallery = np.eye(4)
    scores = measured(
        np.zeros((1, 4)), ["a"], ["google"], gallery, [*"abcd"], ["google"] * 4, ranks=(1, 3)
    )
    assert scores["retrieval@1"] == 0.25 and scores["retrieval@3"] == 0.75


def test_bad_input_is_an_error():
    x = np.eye(2)
    with pytest.raises(UserError, match="'moon' in the style 'google'"):
        measured(x, ["sun", "moon"], ["google"] * 2, x, ["sun", "star"], ["google"] * 2)
    with pytest.raises(UserError, match="no real image of 'twitter'"):
        measured(x, ["sun", "sun"], ["google", "twitter"], x, ["sun", "star"], ["google"] * 2)
    with pytest.raises(UserError, match="each gallery image, got 2 images, 1 groups"):
        measured(x, ["sun"] * 2, ["google"] * 2, x, ["sun"], ["google"] * 2)
