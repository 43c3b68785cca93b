"""One pass over batches collects the same as the whole set at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.eval import collect as collect_module
from vqd_jax.eval.collect import FeatureSpec, batches, collect, evenly_spaced
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Moments


def images(n, size=4):
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def network(batch=8):
    """A stub network whose features differ between images."""
    mix = np.random.default_rng(5).normal(size=(48, 6)).astype(np.float32)
    return Extractor(
        name="mixed",
        params=mix,
        batch=batch,
        embed=lambda p, x: jnp.tanh(x.astype(jnp.float32).reshape(x.shape[0], -1) / 255 @ p),
    )


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("keep", [0, 1, 7, 100])
def test_one_pass_collects_the_same_as_the_set_at_once(rows, keep, monkeypatch):
    monkeypatch.setattr(collect_module, "MOMENTS_BATCH", 5)
    x, weights = images(20), [i % 3 + 1 for i in range(20)]
    extract = network()
    got = collect(
        batches(x, rows),
        20,
        {
            "a": FeatureSpec(extract=extract, keep=keep, moments=True),
            "b": FeatureSpec(extract=extract),
        },
        description="",
        weights=weights,
    )
    whole = np.concatenate([extract(x[:8]), extract(x[8:16]), extract(x[16:])])
    np.testing.assert_allclose(got["b"].features, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["a"].features, got["b"].features[evenly_spaced(20, keep)])
    assert got["a"].indices == evenly_spaced(20, keep) and len(set(got["a"].indices)) == min(
        keep or 20, 20
    )
    repeated = Moments.of(np.repeat(whole, weights, axis=0))
    assert got["a"].moments.count == got["a"].count == sum(weights) and got["b"].moments is None
    np.testing.assert_allclose(got["a"].moments.mean, repeated.mean, rtol=1e-6)
    np.testing.assert_allclose(
        got["a"].moments.covariance, repeated.covariance, rtol=1e-5, atol=1e-9
    )


def test_sharding_a_batch_does_not_change_features(monkeypatch):
    assert jax.local_device_count() == 4
    x, wanted = images(20), lambda: {"a": FeatureSpec(extract=network(), moments=True)}
    shared = collect(batches(x, 8), 20, wanted(), description="")["a"]
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    alone = collect(batches(x, 8), 20, wanted(), description="")["a"]
    np.testing.assert_allclose(shared.features, alone.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shared.moments.scatter, alone.moments.scatter, rtol=1e-5, atol=1e-9)


def test_images_are_read_in_order_and_a_broken_one_is_an_error():
    class Items:
        def __len__(self):
            return 50

        def __getitem__(self, i):
            if i == 33:
                raise UserError("picture 33 is broken")
            return np.full((2, 2, 3), i, np.uint8)

    seen = []
    with pytest.raises(UserError, match="picture 33"):
        for batch in batches(Items(), 8):
            seen += batch[:, 0, 0, 0].tolist()
    assert seen == list(range(32))


@pytest.mark.parametrize("weights", [[1, 2], [1, 0, 1]])
def test_weights_must_be_positive(weights):
    with pytest.raises(UserError, match="each of 3 images must have a weight of at least 1"):
        collect(
            batches(images(3)),
            3,
            {"a": FeatureSpec(extract=network(), moments=True)},
            description="",
            weights=weights,
        )
