import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.eval import measures
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.frechet import Moments, Statistics, frechet_distance
from vqd_jax.eval.kernels import kid_subsets, polynomial_mmd2_error


def collected(n, d=6, shift=0.0):
    x = np.random.default_rng(n).normal(shift, 1, (n, d)).astype(np.float32)
    return Collected(count=n, indices=list(range(n)), features=x, moments=Moments.of(x))


def test_a_distance_is_called_fid_with_the_features_of_inception_only():
    a, b = collected(30), collected(40, shift=0.5)
    want = frechet_distance(
        a.features.mean(0), np.cov(a.features.T), b.features.mean(0), np.cov(b.features.T)
    )
    assert measures.frechet_measure("inception", a, b) == {"fid": pytest.approx(want, rel=1e-5)}
    assert measures.frechet_measure("vgg16", a, b) == {
        "frechet_vgg16": pytest.approx(want, rel=1e-5)
    }
    assert measures.FRECHET.keys() == measures.KERNEL.keys()


def test_published_statistics_give_the_distance_of_their_features(tmp_path):
    a, b = collected(30), collected(40, shift=0.5)
    for name, more in (("pytorch-fid", {}), ("adm", {"mu_s": np.zeros(3), "sigma_s": np.eye(3)})):
        np.savez(tmp_path / f"{name}.npz", mu=b.moments.mean, sigma=b.moments.covariance, **more)
        assert measures.frechet_measure(
            "inception", a, Statistics.read(tmp_path / f"{name}.npz")
        ) == measures.frechet_measure("inception", a, b)


def test_bad_statistics_are_an_error(tmp_path):
    path = tmp_path / "s.npz"
    path.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"s.npz is not a readable .npz file \(BadZipFile"):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(
        UserError,
        match="does not hold statistics, mu and sigma in an .npz file: there is no sigma$",
    ):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(9000), sigma=np.zeros(9000))
    with pytest.raises(
        UserError, match=r"shapes \(9000,\) and \(9000,\) instead of .* d up to 8192"
    ):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match=r"statistics of shapes \(3,\) and \(4, 4\)"):
        Statistics.read(path)
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))  # which would be unpickled
    with pytest.raises(UserError, match="has statistics of object and float64 instead of floats"):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="means and covariances of one width"):
        measures.frechet_measure("inception", collected(9), Statistics.read(path))


@pytest.mark.parametrize("block", [1, 4, 100])
def test_most_similar_equals_a_loop(block):
    a, b = collected(9).features, collected(7).features
    value, place = measures.most_similar(a, b, block=block)
    cosines = [[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in b] for u in a]
    np.testing.assert_allclose(value, np.max(cosines, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(place, np.argmax(cosines, axis=1))
    labels = np.arange(9) % 3, np.arange(7) % 3
    value, place = measures.most_similar(a, b, labels, block=block)
    assert (labels[1][place] == labels[0]).all()
    np.testing.assert_allclose(
        value,
        [max(c for c, m in zip(row, labels[1]) if m == k) for row, k in zip(cosines, labels[0])],
        rtol=1e-5,
    )


def test_a_kernel_distance_needs_four_images():
    options = dict(subsets=3, subset_size=100, seed=0)
    with pytest.raises(UserError, match="at least 4 generated and 4 real images, got 3 and 9"):
        measures.kernel_distance(collected(3), collected(9), **options)
    assert measures.kernel_distance(collected(4), collected(9), **options).values.shape == (3,)


def test_a_kernel_distance_says_its_subset_size_and_its_error():
    """The error of the sets and of drawing subsets; the spread of subsets alone says neither."""
    a, b = collected(40), collected(50, shift=0.5)
    kernel = measures.kernel_distance(a, b, subsets=9, subset_size=100, seed=1)
    values = kid_subsets(a.features, b.features, subsets=9, subset_size=20, seed=1)
    error = polynomial_mmd2_error(a.features, b.features)
    error = np.sqrt(error**2 + values.var() / 9)
    assert kernel.measures("kid") == {
        "kid": pytest.approx(values.mean()),
        "kid_interval": pytest.approx(
            [values.mean() - 1.959964 * error, values.mean() + 1.959964 * error], rel=1e-5
        ),
        "kid_std": pytest.approx(values.std()),
        "kid_subset_size": 20,
    }


def test_copies_pair_each_real_image_once():
    def of(*digests):
        count = len(digests)
        features = np.zeros((count, 2), np.float32)
        indices = [*range(count)]
        return Collected(
            count=count, indices=indices, features=features, moments=None, digests=digests
        )

    real = of(b"a", b"b", b"c", b"d", b"b")
    (records, of_real), count = measures.copies(of(b"d", b"d", b"b", b"x", b"b", b"b"), real)
    assert (records, of_real, count) == ([3, 6, 1, 8, 4, 10], [0, 1, 2, 3, 4], 3)


def test_a_sigma_that_is_no_covariance_is_an_error(tmp_path):
    path, random = tmp_path / "s.npz", np.random.default_rng(0)
    good = np.cov(random.normal(size=(5, 8)), rowvar=False)  # of rank 4
    for sigma in (good, good.astype(np.float32), np.zeros((8, 8))):
        np.savez(path, mu=np.zeros(8), sigma=sigma)
        np.testing.assert_array_equal(Statistics.read(path).covariance, sigma)
    values, axes = np.linalg.eigh(np.cov(random.normal(size=(99, 8)), rowvar=False))
    values[0] = -0.01
    for sigma, sentence in (
        (good + np.eye(8, k=3) * 1e-3, "s.npz must be a covariance, but the matrix is not sym"),
        (axes * values @ axes.T, "but the matrix has the negative eigenvalue -0.01"),
        (np.where(np.eye(8) == 1, np.nan, good), "s.npz must be finite"),
    ):
        np.savez(path, mu=np.zeros(8), sigma=sigma)
        with pytest.raises(UserError, match=sentence):
            Statistics.read(path)
    with pytest.raises(UserError, match="covariance of a Fréchet distance must be a covariance"):
        frechet_distance(np.zeros(8), good, np.zeros(8), -np.eye(8))
