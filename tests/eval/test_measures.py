import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.eval import measures
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.frechet import Moments, Statistics, frechet_distance


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
    with pytest.raises(
        UserError, match="s.npz does not hold statistics, mu and sigma in an .npz file"
    ):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(UserError, match="does not hold statistics.*sigma"):
        Statistics.read(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match=r"statistics of shapes \(3,\) and \(4, 4\)"):
        Statistics.read(path)
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))  # which would be unpickled
    with pytest.raises(UserError, match="does not hold statistics"):
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
    with pytest.raises(UserError, match="at least 4 generated and 4 real images, got 3 and 9"):
        measures.kernel_distances(collected(3), collected(9), subsets=2, subset_size=100, seed=0)
    assert measures.kernel_distances(
        collected(4), collected(9), subsets=3, subset_size=100, seed=0
    ).shape == (3,)
