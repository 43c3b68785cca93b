"""PatchGAN against numpy and scipy, and its hinge losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from vqd_jax.core.errors import UserError
from vqd_jax.models.discriminator import PatchGAN, hinge_d, hinge_g


def images(b, size, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (b, size, size, 3)), jnp.float32)


def reference(params, image, layers):
    """The network on one image in numpy float64, convolutions by scipy."""

    def conv(x, kernel, stride):
        x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = [
            sum(correlate2d(x[..., i], kernel[..., i, o], "valid") for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        return np.stack(out, -1)[::stride, ::stride]

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = leaky(conv(np.asarray(image, np.float64), p["conv0"]["kernel"], 2) + p["conv0"]["bias"])
    for i in range(1, layers + 1):
        x = conv(x, p[f"conv{i}"]["kernel"], 2 if i < layers else 1)
        groups = np.split(x, min(32, x.shape[-1] // 4), axis=-1)
        x = np.concatenate([(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in groups], -1)
        x = leaky(x * p[f"norm{i}"]["scale"] + p[f"norm{i}"]["bias"])
    return conv(x, p["logits"]["kernel"], 1) + p["logits"]["bias"]


@pytest.mark.parametrize(("size", "layers", "patches"), [(32, 2, 6), (32, 3, 2)])
def test_equals_an_independent_implementation(size, layers, patches):
    model, x = PatchGAN(width=8, layers=layers), images(2, size)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    logits = jax.jit(model.apply)({"params": params}, x)
    assert logits.shape == (2, patches, patches, 1)
    np.testing.assert_allclose(
        logits, np.stack([reference(params, i, layers) for i in x]), atol=2e-5
    )


def test_the_published_architecture():
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    model = PatchGAN(width=64, layers=3)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert {k: v["kernel"].shape for k, v in params.items() if "kernel" in v} == {
        "conv0": (4, 4, 3, 64),
        "conv1": (4, 4, 64, 128),
        "conv2": (4, 4, 128, 256),
        "conv3": (4, 4, 256, 512),
        "logits": (4, 4, 512, 1),
    }
    assert {k for k, v in params.items() if "kernel" in v and "bias" in v} == {"conv0", "logits"}
    logits = jax.eval_shape(model.apply, {"params": params}, x)
    assert logits.shape == (1, 30, 30, 1)
    deep = jax.eval_shape(PatchGAN(width=64, layers=5).init, jax.random.key(0), x)["params"]
    assert deep["conv4"]["kernel"].shape == deep["conv5"]["kernel"].shape == (4, 4, 512, 512)


def test_initial_weights_are_normal_with_deviation_002():
    init = jax.jit(PatchGAN(width=32, layers=2).init)
    params = init(jax.random.key(1), images(1, 32))["params"]
    kernel, scale = np.asarray(params["conv2"]["kernel"]), np.asarray(params["norm2"]["scale"])
    assert abs(kernel.std() / 0.02 - 1) < 0.01 and abs(kernel.mean()) < 1e-3
    assert abs(scale.mean() - 1) < 0.01 and 0.015 < scale.std() < 0.025


def test_an_image_is_judged_alone():
    model, x = PatchGAN(width=8, layers=2), images(3, 32)
    params, apply = jax.jit(model.init)(jax.random.key(0), x), jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, x)[1:2], apply(params, x[1:2]), atol=1e-6)


def test_hinge_losses():
    real, fake = np.array([2.0, 0.5, -1.0, 1.0]), np.array([-2.0, 0.5, -0.5, 3.0])
    d = 0.5 * (np.mean([0, 0.5, 2, 0]) + np.mean([0, 1.5, 0.5, 4]))
    real, fake = (jnp.asarray(a, jnp.float32).reshape(1, 2, 2, 1) for a in (real, fake))
    assert float(hinge_d(real, fake)) == pytest.approx(d)
    assert float(hinge_g(fake)) == pytest.approx(-0.25)


def test_training_separates_real_from_fake():
    model, real, fake = PatchGAN(width=8, layers=2), images(4, 32, 1), 0.5 * images(4, 32, 2)
    params = jax.jit(model.init)(jax.random.key(0), real)

    def loss(p):
        return hinge_d(model.apply(p, real), model.apply(p, fake))

    @jax.jit
    def step(p):
        value, slope = jax.value_and_grad(loss)(p)
        return value, jax.tree.map(lambda w, g: w - 0.02 * g, p, slope)

    losses = []
    for _ in range(31):
        value, params = step(params)
        losses.append(float(value))
    assert losses[0] > 0.9 and losses[-1] < 0.6


def test_bad_sizes_are_errors():
    with pytest.raises(UserError, match="multiple of 4"):
        PatchGAN(width=6, layers=3).init(jax.random.key(0), images(1, 32))
    with pytest.raises(UserError, match="at least 24 pixels"):
        PatchGAN(width=8, layers=3).init(jax.random.key(0), images(1, 16))
