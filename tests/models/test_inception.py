"""The FID's InceptionV3: blocks against numpy, and the network against pytorch-fid and torch-fidelity
where they are installed.
"""

import copy
import hashlib
import re
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.torchvision_stub import import_with
from vqd_jax.core.errors import UserError
from vqd_jax.eval.features import inception, inception_logits
from vqd_jax.eval.resizing import resize
from vqd_jax.models.inception import BLOCKS, SIZE, WIDTHS, InceptionV3, Mixed
from vqd_jax.models.weights.inception import RULES, load_inception
from vqd_jax.models.weights.rules import invert

SHAPES = {  # after each block, from the comments in torchvision's code
    "Conv2d_1a_3x3": (149, 32),
    "Conv2d_2a_3x3": (147, 32),
    "Conv2d_2b_3x3": (147, 64),
    "Conv2d_3b_1x1": (73, 80),
    "Conv2d_4a_3x3": (71, 192),
    "Mixed_5b": (35, 256),
    "Mixed_5c": (35, 288),
    "Mixed_5d": (35, 288),
    "Mixed_6a": (17, 768),
    "Mixed_6b": (17, 768),
    "Mixed_6c": (17, 768),
    "Mixed_6d": (17, 768),
    "Mixed_6e": (17, 768),
    "Mixed_7a": (8, 1280),
    "Mixed_7b": (8, 2048),
    "Mixed_7c": (8, 2048),
}
# Parameters of the auxiliary classifier, which only training uses
AUXILIARY = 128 * 768 + 2 * 128 + 768 * 128 * 25 + 2 * 768 + 1000 * 769


def blocks(params, images):
    out, state = InceptionV3().apply(
        {"params": params}, images, capture_intermediates=lambda module, _: module.name in SHAPES
    )
    return out, {name: calls["__call__"][0] for name, calls in state["intermediates"].items()}


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(
        InceptionV3().init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    )["params"]


@pytest.fixture(scope="module")
def state(shapes):
    """A random state dict in the published format, scaled so that activations neither vanish nor grow."""
    random = np.random.default_rng(0)
    out = {}
    for key, zeros in invert(
        jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes), RULES
    ).items():
        if key.endswith(".conv.weight"):
            c, norm = len(zeros), key.replace("conv.weight", "bn.")
            out[key] = random.normal(0, np.sqrt(2 / zeros[0].size), zeros.shape)
            out |= {
                norm + "weight": random.uniform(0.7, 1.3, c),
                norm + "bias": random.normal(0, 0.1, c),
                norm + "running_mean": random.normal(0, 0.1, c),
                norm + "running_var": random.uniform(0.5, 1.5, c),
            }
        elif key.startswith("fc."):
            out[key] = random.normal(0, 0.05, zeros.shape)
    return {key: value.astype(np.float32) for key, value in out.items()}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(state, path)
    return path


def test_shapes_and_number_of_parameters_are_the_published_ones(shapes, state):
    out, after = jax.eval_shape(
        blocks, shapes, jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32)
    )
    assert {name: x.shape for name, x in after.items()} == {
        name: (2, side, side, c) for name, (side, c) in SHAPES.items()
    }
    assert {name: x.shape[1] for name, x in out.items()} == {
        "64": 64,
        "192": 192,
        "768": 768,
        "2048": 2048,
        "logits_unbiased": 1008,
        "logits": 1008,
    }
    trained = sum(value.size for key, value in state.items() if "running" not in key)
    assert trained == 27_161_264 - AUXILIARY + 8 * 2049  # torchvision's count; 8 classes more


@pytest.mark.parametrize("name", ["Mixed_7b", pytest.param("Mixed_7c", marks=pytest.mark.slow)])
def test_a_block_equals_its_definition(name):
    """In float64, with convolutions as shifted products; the pool is a mean without the padding, and
    a maximum in the last block.
    """
    x = np.random.default_rng(1).normal(size=(4, 3, 5))
    module = Mixed(**BLOCKS[name])
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 3, 5)))["params"]

    def layer(x, name):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        (h, w), (H, W) = kernel.shape[:2], x.shape[:2]
        padded = np.pad(x, ((h // 2, h // 2), (w // 2, w // 2), (0, 0)))
        return np.maximum(
            sum(padded[i : i + H, j : j + W] @ kernel[i, j] for i in range(h) for j in range(w)), 0
        )

    def fork(x, name):
        return [layer(x, name + "a"), layer(x, name + "b")]

    windows = [
        [x[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].reshape(-1, 5) for j in range(3)]
        for i in range(4)
    ]
    pooled = np.array(
        [[w.mean(0) if name == "Mixed_7b" else w.max(0) for w in row] for row in windows]
    )
    want = np.concatenate(
        [
            layer(x, "branch1x1"),
            *fork(layer(x, "branch3x3_1"), "branch3x3_2"),
            *fork(layer(layer(x, "branch3x3dbl_1"), "branch3x3dbl_2"), "branch3x3dbl_3"),
            layer(pooled, "branch_pool"),
        ],
        -1,
    )
    got = jax.jit(module.apply)({"params": params}, jnp.asarray(x[None], jnp.float32))
    np.testing.assert_allclose(got[0], want, atol=1e-5)


@pytest.mark.slow  # 7 s
def test_a_missing_file_a_missing_key_and_another_network_are_named(state, tmp_path):
    with pytest.raises(
        UserError,
        match=r"no Inception weights .*nowhere.pth: download "
        r"https://.*/pt_inception-2015-12-05-6726825d.pth",
    ):
        load_inception(tmp_path / "nowhere.pth")
    path = tmp_path / "wrong.safetensors"
    for change, message in [
        ({"fc.bias": None}, "nothing for 'fc_bias'"),
        (
            {"Mixed_6b.branch_pool.bn.running_var": None},
            "'Mixed_6b.branch_pool.conv.weight' without its normalisation key "
            "'Mixed_6b.branch_pool.bn.running_var'",
        ),
        ({"Mixed_7c.branch1x1.conv.weight": None}, "'Mixed_7c.branch1x1.bn.weight'"),
        (
            {"fc.weight": np.zeros((1000, 2048), np.float32)},
            r"'fc/kernel' has shape \(2048, 1000\) in the file and \(2048, 1008\)",
        ),
        (
            {"AuxLogits.fc.bias": np.zeros(1000, np.float32)},
            "'AuxLogits.fc.bias', unknown in this format",
        ),
        (
            {"Conv2d_1a_3x3.bn.bias": np.zeros(31, np.float32)},
            "'Conv2d_1a_3x3.bn' of shapes that do not match",
        ),
    ]:
        save_file({k: v for k, v in (state | change).items() if v is not None}, path)
        with pytest.raises(UserError, match=message):
            load_inception(path)


@pytest.mark.slow  # 6 s
def test_the_file_is_found_in_torchs_cache_and_its_name_has_its_checksum(
    file, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder, data = tmp_path / "hub" / "checkpoints", file.read_bytes()
    with pytest.raises(
        UserError,
        match=f"no Inception weights {folder}/pt_inception-2015-12-05-6726825d.pth: download",
    ):
        load_inception()
    folder.mkdir(parents=True)
    (folder / "weights-inception-2015-12-05-6726825d.pth").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()[:8]
    for path in (None, folder):
        with pytest.raises(
            UserError,
            match="6726825d.pth is damaged, or another file: its SHA-256 checksum begins with "
            f"{digest}, not with 6726825d",
        ):
            load_inception(path)
    (tmp_path / f"inception-{digest}.safetensors").write_bytes(data)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_inception(tmp_path / f"inception-{digest}.safetensors"),
        load_inception(file),
    )


def test_bad_settings_and_sizes_are_errors(file):
    with pytest.raises(
        UserError,
        match="resizing=pytorch-fid | tf-legacy | clean and output=64 | .*got 'bilinear' and "
        "'2048'",
    ):
        inception(file, "bilinear")
    with pytest.raises(UserError, match="got 'clean' and '1024'"):
        inception(file, "clean", "1024")
    with pytest.raises(UserError, match="at least 75 pixels a side, got 74x299"):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 74, 299, 3)))


@pytest.fixture(scope="module")
def torch_file(state, tmp_path_factory):
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({k: torch.tensor(v) for k, v in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def fidelity(torch_file):
    """torch-fidelity's network with these weights."""
    module = import_with(MagicMock(), "torch_fidelity.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3(
        "inception", list(WIDTHS), feature_extractor_weights_path=str(torch_file)
    )


@pytest.fixture(scope="module")
def pytorch_fid(state, fidelity):
    """pytorch-fid's network with these weights, built on torch-fidelity's in place of torchvision's."""
    import torch

    source = sys.modules[type(fidelity).__module__]
    theirs = SimpleNamespace(
        InceptionA=source.InceptionA, InceptionC=source.InceptionC, InceptionE=source.InceptionE_1
    )
    models = SimpleNamespace(inception=theirs, inception_v3=lambda **_: copy.deepcopy(fidelity))
    module = import_with(
        SimpleNamespace(__version__="0.28", models=models), "pytorch_fid.inception"
    )
    module.load_state_dict_from_url = lambda *_, **__: {
        k: torch.tensor(v) for k, v in state.items()
    }
    return module.InceptionV3(output_blocks=(0, 1, 2, 3)).eval()


def test_every_block_equals_theirs(pytorch_fid, fidelity, file):
    import torch

    images = np.random.default_rng(2).uniform(-1, 1, (1, 3, 107, 91)).astype(np.float32)
    stages = pytorch_fid.blocks
    of_fid = [
        layer
        for stage in stages
        for layer in stage
        if not re.match("MaxPool|AdaptiveAvg", type(layer).__name__)
    ]
    out, ours = jax.jit(blocks)(load_inception(file), images.transpose(0, 2, 3, 1))
    for layers in (
        dict(zip(SHAPES, of_fid, strict=True)),
        {name: getattr(fidelity, name) for name in SHAPES},
    ):
        x = torch.tensor(images)
        with torch.no_grad():
            for name, layer in layers.items():
                x = layer(x)
                want = x.permute(0, 2, 3, 1).numpy()
                assert 0.3 < np.abs(want).max() < 100, name
                np.testing.assert_allclose(
                    ours[name], want, atol=1e-4 * np.abs(want).max(), err_msg=name
                )
                if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                    x = torch.nn.functional.max_pool2d(x, 3, 2)
        np.testing.assert_allclose(out["2048"], x.mean((2, 3)), atol=1e-4)


def test_features_of_bytes_equal_pytorch_fids(pytorch_fid, file):
    import torch

    images = np.random.default_rng(3).integers(0, 256, (1, 32, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        want = [
            x.mean((2, 3)).numpy()
            for x in pytorch_fid(torch.tensor(images).permute(0, 3, 1, 2).float() / 255)
        ]
    np.testing.assert_allclose(inception(file, batch=1)(images), want[3], atol=1e-4)
    np.testing.assert_allclose(inception(file, output="768", batch=1)(images), want[2], atol=1e-4)


def test_all_outputs_equal_torch_fidelitys(fidelity, torch_file):
    import torch

    images = np.random.default_rng(4).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        want = dict(zip(WIDTHS, fidelity(torch.tensor(images).permute(0, 3, 1, 2)), strict=True))
    extract = inception(torch_file, "tf-legacy", batch=1)
    features = extract(images)
    np.testing.assert_allclose(features, want["2048"], atol=1e-4)
    np.testing.assert_allclose(
        inception_logits(extract, features), want["logits_unbiased"], atol=1e-4
    )
    resized = resize(jnp.asarray(images, jnp.float32), (SIZE, SIZE), "tf-legacy") / 128 - 1
    out = jax.jit(InceptionV3().apply)({"params": extract.params}, resized)
    assert np.abs(out["logits"] - out["logits_unbiased"]).max() > 0.05
    for name, value in want.items():
        np.testing.assert_allclose(out[name], value, atol=1e-4, err_msg=name)
