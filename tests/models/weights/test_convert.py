import collections
import mmap
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helpers.torch_pickles import Storage, save
from vqd_jax.core.errors import UserError
from vqd_jax.models.weights import clip, denoiser, vqgan
from vqd_jax.models.weights.efficientnet_lite0 import load_efficientnet_lite0
from vqd_jax.models.weights.lpips import load_lpips
from vqd_jax.models.weights.rules import NotFiniteError, Rule, conv, convert, linear
from vqd_jax.models.weights.torch_files import read_numpy_pickle, read_torch

TARGET = {
    "dense": {
        "kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32),
        "bias": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
}
RULES = [
    Rule(source=r"fc\.weight", target="dense/kernel", transform=linear),
    Rule(source=r"fc\.(bias)", target=r"dense/\1"),
]


def arrays(*shapes):
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


# the engine


def test_transforms_are_those_of_the_layers():
    weight, x = arrays((2, 3), (5, 3))
    np.testing.assert_allclose(x @ linear(weight), np.einsum("oi,bi->bo", weight, x), rtol=1e-5)
    (kernel,) = arrays((4, 3, 2, 5))
    assert conv(kernel)[1, 4, 2, 3] == kernel[3, 2, 1, 4]


def test_fills_every_leaf():
    weight, bias = arrays((2, 3), (2,))
    source = {"fc.weight": weight.astype(np.float64), "fc.bias": bias, "fc.steps": np.array(3)}
    tree = convert(source, RULES, TARGET, drop=[r"fc\.steps"], name="w")
    assert tree["dense"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(tree["dense"]["kernel"], weight.T)
    np.testing.assert_array_equal(tree["dense"]["bias"], bias)


def test_joins_parts_in_their_order():
    q, k, v = arrays((2, 3), (2, 3), (2, 3))
    target = {
        "qkv": jax.ShapeDtypeStruct((3, 6), jnp.float32),
        "stack": jax.ShapeDtypeStruct((11, 1), jnp.float32),
    }
    rules = [
        Rule(
            source=name,
            target="qkv",
            transform=linear,
            part=str(i),
            join=lambda a: np.concatenate(a, axis=1),
        )
        for i, name in enumerate(("query", "key", "value"))
    ]
    rules.append(Rule(source=r"layer(\d+)", target="stack", part=r"\1", join=np.stack))
    layers = {f"layer{i}": np.array([i], np.float32) for i in (10, 2, 1, 0, 3, 4, 9, 8, 7, 6, 5)}
    tree = convert({"value": v, "query": q, "key": k, **layers}, rules, target, name="w")
    np.testing.assert_array_equal(tree["qkv"], np.concatenate([q.T, k.T, v.T], axis=1))
    np.testing.assert_array_equal(tree["stack"][:, 0], np.arange(11))
    del layers["layer5"]
    with pytest.raises(UserError, match="'stack' has only the parts"):
        convert({"value": v, "query": q, "key": k, **layers}, rules, target, name="w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.extra": np.zeros(1)}, "the file has 'fc.extra', unknown in this format"),
        ({"fc.bias": None}, "the file has nothing for 'dense/bias'"),
        (
            {"fc.weight": np.zeros((3, 2))},
            r"'dense/kernel' has shape \(2, 3\) in the file and \(3, 2\) in the model",
        ),
        ({"fc.bias": np.array(["a", "b"])}, "'dense/bias' holds <U1"),
        (
            {"conv.weight": np.zeros((2, 2))},
            r"'conv.weight' has shape \(2, 2\), which does not fit",
        ),
        ({"fc2.bias": np.zeros(2)}, "'fc2.bias' is the second for 'dense/bias'"),
        ({"gone": np.zeros(2)}, "weights for 'elsewhere', which the model does not have"),
    ],
)
def test_whatever_does_not_fit_is_named(change, message):
    rules = [
        *RULES,
        Rule(source=r"conv\.weight", target="conv", transform=conv),
        Rule(source=r"fc2\.bias", target="dense/bias"),
        Rule(source="gone", target="elsewhere"),
    ]
    weight, bias = arrays((2, 3), (2,))
    source = {
        k: v for k, v in {"fc.weight": weight, "fc.bias": bias, **change}.items() if v is not None
    }
    with pytest.raises(UserError, match=message):
        convert(source, rules, TARGET, name="w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_numbers_that_are_nan_or_infinite_are_counted(value, dtype):
    with np.errstate(over="ignore"):
        bias = np.array([value, 1.0]).astype(dtype)
        weight = np.array([[value, value, 1], [2, 3, value]]).astype(dtype)
    message = "w: 1 of the 2 numbers in 'fc.bias' are NaN or infinite$"
    with pytest.raises(NotFiniteError, match=message):
        convert({"fc.weight": np.ones((2, 3)), "fc.bias": bias}, RULES, TARGET, name="w")
    source = {"fc.weight": weight, "fc.bias": bias}
    message = "w: 3 of the 6 numbers in 'fc.weight' are NaN or infinite, the first of 2 such arrays"
    with pytest.raises(NotFiniteError, match=message):
        convert(source, RULES, TARGET, name="w")
    with np.errstate(over="ignore"):
        tree = convert(source, RULES, TARGET, name="w", finite=False)
    assert np.isfinite(tree["dense"]["bias"]).tolist() == [False, True]


def test_dropped_arrays_and_whole_numbers_may_be_anything():
    source = {"fc.weight": np.ones((2, 3), int), "fc.bias": np.zeros(2), "mask": np.array(-np.inf)}
    assert convert(source, RULES, TARGET, drop=["mask"], name="w")["dense"]["kernel"].sum() == 6


@pytest.mark.parametrize(
    "sizes,keys,sentence",
    [
        (
            denoiser.sizes,
            {f"blocks.{i}.mlp.0.weight": (16, 4) for i in range(201)}
            | {f"content_emb.{x}emb.weight": (21, 4) for x in ("", "height_", "width_")},
            "the weights have 201 layers; at most 200 are accepted",
        ),
        (
            clip.sizes,
            {f"transformer.resblocks.{i}.ln_1.bias": (4,) for i in range(201)}
            | {"token_embedding.weight": (9, 4), "positional_embedding": (5, 4)},
            "the weights have 201 layers",
        ),
        (
            vqgan.sizes,
            {f"encoder.down.{i}.block.0.conv1.weight": (2, 2, 3, 3) for i in range(11)}
            | {"encoder.conv_in.weight": (2, 3, 3, 3)},
            "more than 10 levels",
        ),
        (
            clip.sizes,
            {"token_embedding.weight": (2**40, 0), "positional_embedding": (5, 0)},
            "no token or position embedding",
        ),
        (
            denoiser.sizes,
            {f"content_emb.{x}emb.weight": (0, 2**40) for x in ("", "height_", "width_")}
            | {"blocks.0.mlp.0.weight": (2**42, 0)},
            "an array without numbers",
        ),
    ],
    ids=["denoiser", "clip", "levels", "tokens", "states"],
)
def test_a_small_file_is_no_model_of_endless_layers_or_widths(sizes, keys, sentence):
    with pytest.raises(UserError, match=sentence):
        sizes({key: np.zeros(shape, np.float32) for key, shape in keys.items()})


def test_the_number_of_a_layer_is_not_the_number_of_layers():
    keys = {f"content_emb.{x}emb.weight": (21, 4) for x in ("", "height_", "width_")}
    keys |= {"blocks.0.mlp.0.weight": (16, 4), "blocks.99999999.mlp.0.weight": (16, 4)}
    found = denoiser.sizes({key: np.zeros(shape, np.float32) for key, shape in keys.items()})
    assert found["denoiser"]["layers"] == 2


# the packages' weights


def test_packaged_weights_have_known_sizes():
    def count(tree):
        return sum(a.size for a in jax.tree.leaves(tree))

    lpips, efficientnet = load_lpips(), load_efficientnet_lite0()
    assert count(lpips["vgg"]) == 14_714_688  # the convolutions of VGG16
    assert sum(lpips[f"head{i}"].size for i in range(1, 6)) == 64 + 128 + 256 + 512 + 512
    assert min(lpips[f"head{i}"].min() for i in range(1, 6)) > 0  # a distance
    assert (
        4.6e6 < count(efficientnet) < 4.7e6
    )  # 4.65M published, of which each norm has folded two vectors into one
    assert all(a.dtype == np.float32 for a in jax.tree.leaves((lpips, efficientnet)))


# pickles


@pytest.mark.parametrize("legacy", [True, False])
def test_reads_torch_files(tmp_path, legacy):
    x = np.arange(24, dtype=np.float32)

    def checkpoint(tensor):
        shared = Storage("FloatStorage", x)
        state = collections.OrderedDict(
            whole=tensor(shared, 0, (4, 6), (6, 1)),
            transposed=tensor(shared, 0, (6, 4), (1, 6)),
            row=tensor(shared, 18, (6,), (1,)),
            empty=tensor(shared, 0, (0, 3), (3, 1)),
            scalar=tensor(Storage("LongStorage", np.array([7], np.int64)), 0, (), ()),
            half=tensor(
                Storage("BFloat16Storage", x[:3].astype(ml_dtypes.bfloat16)), 0, (3,), (1,)
            ),
        )
        return {"model": state, "epoch": 3, "betas": [0.9, (0.96,)]}

    save(tmp_path / "w.pth", legacy, checkpoint)
    read = read_torch(tmp_path / "w.pth")
    grid = x.reshape(4, 6)
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "row": grid[3],
        "empty": np.zeros((0, 3)),
        "scalar": np.array(7),
        "half": x[:3],
    }
    assert read["epoch"] == 3 and read["betas"] == [0.9, (0.96,)]
    assert list(read["model"]) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(read["model"][key].astype(value.dtype), value)
        assert not read["model"][key].flags.writeable
        assert legacy or isinstance(
            owner(read["model"][key]), mmap.mmap
        )  # nothing of it is held in memory


def owner(array):
    """What holds an array's numbers."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_reads_compressed_torch_files(tmp_path):
    x = np.arange(24, dtype=np.float32)
    save(
        tmp_path / "stored",
        False,
        lambda tensor: {"x": tensor(Storage("FloatStorage", x), 4, (4, 5), (5, 1))},
    )
    with (
        zipfile.ZipFile(tmp_path / "stored") as stored,
        zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in stored.namelist():
            small.writestr(name, stored.read(name))
    np.testing.assert_array_equal(read_torch(tmp_path / "small")["x"], x[4:].reshape(4, 5))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(2, (3,), (1,)), (0, (2,), (4,)), (3, (2,), (-1,)), (-1, (2,), (1,))],
)
def test_a_tensor_never_leaves_its_storage(tmp_path, legacy, offset, shape, strides):
    storage = Storage("FloatStorage", np.zeros(4, np.float32))
    save(tmp_path / "w.pth", legacy, lambda tensor: tensor(storage, offset, shape, strides))
    with pytest.raises(UserError, match="a tensor outside its storage"):
        read_torch(tmp_path / "w.pth")


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_code_in_a_file_is_refused(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    if legacy is None:
        (tmp_path / "w").write_bytes(pickle.dumps({"w": np.zeros(2), "x": Command()}))
    else:
        save(tmp_path / "w", legacy, lambda _: {"x": Command()})
    with pytest.raises(UserError, match=r"\(the global (posix|nt)\.system\)"):
        (read_numpy_pickle if legacy is None else read_torch)(tmp_path / "w")
    assert not (tmp_path / "executed").exists()


def test_objects_of_a_trainer_become_placeholders(tmp_path, monkeypatch):
    trainer = types.ModuleType("pytorch_lightning.callbacks")
    trainer.Checkpoint = type("Checkpoint", (), {"__module__": trainer.__name__})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    thing = trainer.Checkpoint()
    thing.best = 3
    save(
        tmp_path / "w", False, lambda tensor: {"callbacks": {trainer.Checkpoint: thing}, "epoch": 2}
    )
    read = read_torch(tmp_path / "w")
    assert read["epoch"] == 2 and not hasattr(next(iter(read["callbacks"].values())), "best")


@pytest.mark.parametrize("protocol", range(6))
def test_reads_numpy_pickles_of_every_protocol(tmp_path, protocol):
    (x,) = arrays((2, 3))
    tree = {"a": {"b": x, "c": np.asfortranarray(x)}, "n": np.float32(2)}
    (tmp_path / "w").write_bytes(pickle.dumps(tree, protocol=protocol))
    tree = read_numpy_pickle(tmp_path / "w")
    np.testing.assert_array_equal(tree["a"]["b"], x)
    np.testing.assert_array_equal(tree["a"]["c"], x)
    assert tree["n"] == 2


def test_damaged_files_are_one_sentence(tmp_path):
    storage = Storage("FloatStorage", np.ones(64, np.float32))
    for name, legacy in (("old", True), ("new", False)):
        save(tmp_path / name, legacy, lambda tensor: {"x": tensor(storage, 0, (8, 8), (8, 1))})
    (tmp_path / "numpy").write_bytes(pickle.dumps({"x": np.ones((8, 8))}, protocol=3))
    for name, read in (("old", read_torch), ("new", read_torch), ("numpy", read_numpy_pickle)):
        whole = (tmp_path / name).read_bytes()
        for end in (0, 1, 10, len(whole) // 2, len(whole) - 60, len(whole) - 1):
            (tmp_path / "cut").write_bytes(whole[:end])
            with pytest.raises(UserError, match=r"cut is not a .*(damaged|\(.*\)$)") as caught:
                read(tmp_path / "cut")
            assert "\n" not in str(caught.value)
    flipped = bytearray((tmp_path / "new").read_bytes())
    flipped[flipped.index(np.ones(64, np.float32).tobytes()) + 5] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(UserError, match="damaged"):
        read_torch(tmp_path / "flipped")
    with pytest.raises(UserError, match="cannot read .*absent"):
        read_torch(tmp_path / "absent")
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(UserError, match="text is not a torch checkpoint"):
        read_torch(tmp_path / "text")
