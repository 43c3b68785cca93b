import jax
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.eval import features as features_
from vqd_jax.eval.features import Extractor, efficientnet_lite0, vgg16
from vqd_jax.runtime.devices import local_devices


def images(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (lambda b: vgg16(batch=b), 512),
        # the same code with a network that compiles for four seconds
        pytest.param(lambda b: efficientnet_lite0(size=32, batch=b), 1280, marks=pytest.mark.slow),
    ],
)
def test_batches_do_not_change_the_features(make, width):
    x, extract = images(3), make(2)
    features = extract(x)
    assert features.shape == (3, width) and features.dtype == np.float32
    np.testing.assert_allclose(features[2:], extract(x[2:]), rtol=1e-4, atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3
    before = features_._features._cache_size()
    extract(images(5))
    assert features_._features._cache_size() == before


def test_rows_reach_the_network_as_they_are():
    means = Extractor(name="means", params=2.0, embed=lambda p, x: p * x.mean(axis=(1, 2)), batch=2)
    x = np.zeros((3, 4, 4, 3), np.uint8)
    x[1] = 255
    x[2, :, :, 1] = 255
    np.testing.assert_array_equal(means(x), [[0, 0, 0], [510, 510, 510], [0, 510, 0]])
    last = Extractor(name="last", params=3.0, embed=lambda p, ids: p * ids[:, -1:], batch=2)
    np.testing.assert_array_equal(last(np.arange(15).reshape(3, 5)), [[12], [27], [42]])


def test_images_of_several_sizes_are_resized_one_by_one():
    """Their features are those of a batch of the resized images, in its order."""
    means = Extractor(
        name="means",
        params=2.0,
        embed=lambda p, x: p * x.astype("float32").mean(axis=(1, 2)),
        batch=2,
        resize_one=lambda image: image[:2, :2],
    )
    x = [images(1, size)[0] for size in (4, 2, 7)]
    np.testing.assert_array_equal(means(x), means(np.stack([image[:2, :2] for image in x])))
    with pytest.raises(UserError, match="vgg features need images of one size"):
        Extractor(name="vgg", params=None, embed=means.embed)(x)


def test_products_are_full_float32_on_every_device():
    extract = vgg16(batch=2)
    program = str(
        jax.make_jaxpr(features_._features, static_argnums=(0, 1))(
            extract.embed, local_devices(2), extract.params, images(2)
        )
    )
    assert program.count("conv_general_dilated[") + program.count("dot_general[") == 13
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 13


def test_bad_input_is_an_error():
    with pytest.raises(UserError, match="means features need at least one image"):
        Extractor(name="means", params=None, embed=lambda p, x: x.mean(axis=(1, 2)))(images(0))
    with pytest.raises(UserError, match="at least 32 pixels"):
        efficientnet_lite0(size=16)
