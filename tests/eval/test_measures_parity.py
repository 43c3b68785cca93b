"""Distances and scores compared with the packages whose numbers others publish: torch-fidelity,
pytorch-fid, prdc, scikit-image.
"""

import dataclasses
import functools
import inspect
import operator
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import numpy as np
import pytest
import scipy.linalg

torch = pytest.importorskip("torch")
prdc = pytest.importorskip("prdc")
skimage = pytest.importorskip("skimage.metrics")
if not (find_spec("torch_fidelity") and find_spec("pytorch_fid")):
    pytest.skip("torch-fidelity and pytorch-fid are not installed", allow_module_level=True)

with (
    pytest.MonkeyPatch.context() as patch
):  # both import torchvision, for pictures and networks only
    for name in ("", ".models", ".transforms", ".transforms.functional", ".datasets"):
        patch.setitem(sys.modules, f"torchvision{name}", MagicMock())
    import torch_fidelity  # noqa: F401
    from pytorch_fid import fid_score

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402

from vqd_jax.eval.frechet import Moments, frechet_distance
from vqd_jax.eval.kernels import kid_subsets, polynomial_mmd2
from vqd_jax.eval.neighbours import neighbourhoods
from vqd_jax.eval.reconstruction import ssim
from vqd_jax.eval.scores import inception_score


def features(n, m, d, dtype=np.float64, shift=0.2):
    """Positive and correlated, as the pooled features of a network."""
    random = np.random.default_rng(n + 1000 * m)
    mix = random.normal(size=(d, d)) / np.sqrt(d)
    return np.abs(random.normal(size=(n, d)) @ mix).astype(dtype), np.abs(
        random.normal(shift, 1.2, (m, d)) @ mix
    ).astype(dtype)


@pytest.fixture
def sqrtm(monkeypatch):
    """SciPy 1.18 dropped the argument with which pytorch-fid 0.3 calls it."""
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        root = scipy.linalg.sqrtm
        monkeypatch.setattr(
            scipy.linalg, "sqrtm", lambda a, disp=True: root(a) if disp else (root(a), 0.0)
        )


@pytest.mark.parametrize("n, m, d", [(500, 700, 64), (40, 60, 64), (30, 500, 96)])
def test_frechet_distance(n, m, d, sqrtm):
    a, b = features(n, m, d)
    x, y = (functools.reduce(operator.add, map(Moments.of, np.array_split(f, 7))) for f in (a, b))
    value = frechet_distance(x.mean, x.covariance, y.mean, y.covariance)
    one, two = (metric_fid.fid_features_to_statistics(torch.from_numpy(f)) for f in (a, b))
    assert value == pytest.approx(
        metric_fid.fid_statistics_to_metric(one, two, False)[metric_fid.KEY_METRIC_FID], rel=1e-6
    )
    assert value == pytest.approx(
        fid_score.calculate_frechet_distance(one["mu"], one["sigma"], two["mu"], two["sigma"]),
        rel=1e-6,
    )


def test_kernel_distance_on_the_same_subsets(monkeypatch):
    a, b = features(300, 200, 48, shift=0.3)
    drawn = []
    mmd = metric_kid.kernel_mmd

    def noted(x, y, **kwargs):
        drawn.append((x, y, mmd(x, y, **kwargs)))
        return drawn[-1][2]

    monkeypatch.setattr(metric_kid, "kernel_mmd", noted)
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=20, kid_subset_size=80, verbose=False
    )
    values = [polynomial_mmd2(x, y) for x, y, _ in drawn]
    assert len(values) == 20 and values == pytest.approx([value for *_, value in drawn], rel=1e-6)
    assert (np.mean(values), np.std(values)) == pytest.approx(
        (theirs[metric_kid.KEY_METRIC_KID_MEAN], theirs[metric_kid.KEY_METRIC_KID_STD]), rel=1e-6
    )
    other = kid_subsets(a, b, subsets=20, subset_size=80)
    assert abs(np.mean(other) - np.mean(values)) < np.std(other)  # other subsets of the same sets

    whole = metric_kid.kid_features_to_metric(
        torch.from_numpy(a[:200]),
        torch.from_numpy(b),
        kid_subsets=1,
        kid_subset_size=200,
        verbose=False,
    )
    assert kid_subsets(a[:200], b, subsets=1, subset_size=200)[0] == pytest.approx(
        whole[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n, m, k", [(400, 300, 3), (150, 400, 5), (90, 60, 2)])
def test_neighbourhoods(n, m, k, dtype):
    real, generated = features(n, m, 24, dtype, shift=0.6)
    theirs = prdc.compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    ours = dataclasses.asdict(neighbourhoods(real, generated, k=k, block=128))
    assert all(0 < value < 1 for name, value in theirs.items() if name != "density")
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, rel=1e-14)
    other = metric_prc.prc_features_to_metric(
        torch.from_numpy(generated).double(),
        torch.from_numpy(real).double(),
        prc_neighborhood=k,
        verbose=False,
    )
    assert (ours["precision"], ours["recall"]) == pytest.approx(
        (other[metric_prc.KEY_METRIC_PRECISION], other[metric_prc.KEY_METRIC_RECALL]), rel=1e-6
    )  # theirs is a float32


def test_inception_score():
    logits = np.random.default_rng(0).normal(0, 2, (203, 50)).astype(np.float32)
    for splits in (1, 10):
        theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
        ours = inception_score(logits, splits=splits, seed=None)
        assert ours == pytest.approx(
            (theirs[metric_isc.KEY_METRIC_ISC_MEAN], theirs[metric_isc.KEY_METRIC_ISC_STD]),
            rel=1e-9,
        )


@pytest.mark.parametrize("shape", [(11, 11, 1), (40, 37, 3), (64, 64, 3)])
def test_structural_similarity(shape):
    random = np.random.default_rng(1)
    x = random.integers(0, 256, (3, *shape), np.uint8)
    y = np.clip(x + random.normal(0, [[[[5]]], [[[40]]], [[[120]]]], x.shape), 0, 255).astype(
        np.uint8
    )
    theirs = [
        skimage.structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y) == pytest.approx(theirs, rel=1e-9)
