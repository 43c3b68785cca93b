"""Weight files as trees: safetensors everywhere, PyTorch's formats where PyTorch is installed."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers import hostile
from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.files import flatten, read_tree, strip_prefix
from vqd_jax.models.weights.torch_files import read_torch


def test_safetensors_and_prefixes(tmp_path):
    save_file({"a.b": np.arange(3.0), "c": np.ones((2, 2), np.float16)}, tmp_path / "x.safetensors")
    tree = read_tree(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tree["a.b"], [0, 1, 2])
    assert strip_prefix("a.", tree).keys() == {"b"}
    assert flatten({"a": {"b": np.zeros(1), "n": 3}, "c": "text"}).keys() == {"a.b"}


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}{}{}{}"]
)
def test_a_damaged_file_is_one_sentence(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not a safetensors file, or it is damaged"):
        read_tree(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="there is no weight file"):
        read_tree(tmp_path / "y.pth")


@pytest.mark.filterwarnings("ignore")
def test_torch_and_torchscript(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.LayerNorm(2))
    ).half()
    want = {name: value.numpy() for name, value in module.state_dict().items()}
    torch.jit.script(module).save(str(tmp_path / "script.pt"))  # as OpenAI publishes CLIP
    torch.save(module.state_dict(), tmp_path / "state.pth")
    torch.save(torch.arange(4), tmp_path / "one.pt")
    for name in ("script.pt", "state.pth"):
        got = flatten(read_tree(tmp_path / name))
        assert got.keys() == want.keys()
        for key, value in want.items():
            np.testing.assert_array_equal(got[key], value)
    np.testing.assert_array_equal(read_tree(tmp_path / "one.pt")[""], [0, 1, 2, 3])


@pytest.mark.parametrize(
    "content,kind",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a pointer of Git LFS",
        ),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
    ],
)
@pytest.mark.parametrize("read", [read_tree, read_torch], ids=["safetensors", "torch"])
def test_a_file_of_another_kind_is_called_what_it_is(content, kind, read, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"x.safetensors is {kind}"):
        read(tmp_path / "x.safetensors")


def safetensors(path, tensors):
    """A file of tensors of any type, name -> (type, number of bytes)."""
    header, end = {}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [4], "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(end))


@pytest.mark.parametrize(
    "dtype,size", [("F8_E4M3", 4), ("F8_E5M2", 4), ("F6_E2M3", 3), ("C64", 32)]
)
def test_a_type_that_is_not_read_is_named(tmp_path, dtype, size):
    safetensors(tmp_path / "x.safetensors", {"a": ("F32", 16), "b.weight": (dtype, size)})
    with pytest.raises(UserError, match=f"the tensor 'b.weight' is of the type {dtype}, which is"):
        read_tree(tmp_path / "x.safetensors")


def test_a_type_that_nobody_knows_is_one_sentence(tmp_path):
    safetensors(tmp_path / "x.safetensors", {"a": ("Q4", 4)})
    with pytest.raises(UserError, match="unknown variant `Q4`"):
        read_tree(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "dtype", ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
)
def test_the_types_of_weights_are_read(tmp_path, dtype):
    size = {"F": 4, "I": 4, "U": 4, "B": 4}[dtype[0]] * int(dtype.lstrip("BFIUOL") or 8) // 8
    safetensors(tmp_path / "x.safetensors", {"a": (dtype, size)})
    np.testing.assert_array_equal(read_tree(tmp_path / "x.safetensors")["a"], [0] * 4)


QUANTISED = hostile.tensor(hostile.storage(kind="QInt8Storage"), rebuild="_rebuild_qtensor")
UNTYPED = hostile.storage(kind="UntypedStorage", module="torch.storage")
FLOAT8 = hostile.tensor(
    UNTYPED, dtype=hostile.named("torch", "float8_e4m3fn"), rebuild="_rebuild_tensor_v3"
)
SPARSE = (
    hostile.named("torch._utils", "_rebuild_sparse_tensor")
    + hostile.named("torch.serialization", "_get_layout")
    + hostile.text(b"torch.sparse_coo")
    + b"\x85R)\x86R"
)
KINDS = [
    (FLOAT8, "float8_e4m3fn"),
    (
        hostile.tensor(hostile.storage(hostile.text(b"1"), kind="ComplexFloatStorage")),
        "ComplexFloat",
    ),
    (QUANTISED, "quantised"),
    (SPARSE, "sparse"),
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("tensor,dtype", KINDS, ids=[dtype for _, dtype in KINDS])
def test_a_type_of_torch_that_is_not_read_is_named(tmp_path, tensor, dtype, old):
    entries = hostile.text(b"a") + hostile.tensor() + hostile.text(b"b") + tensor
    tree = hostile.PROTOCOL + b"}" + hostile.text(b"m") + b"}(" + entries + b"us."
    keys = hostile.PROTOCOL + b"](" + hostile.text(b"0") + b"e." + struct.pack("<q", 4) + bytes(16)
    (tmp_path / "x.pth").write_bytes(hostile.legacy(tree, keys) if old else hostile.zipped(tree))
    with pytest.raises(UserError, match=f"the tensor 'm.b' is of the type {dtype}, which is not"):
        read_tree(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_types_are_named_in_what_torch_itself_writes(tmp_path, new):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3)
    for tensor, dtype in [
        (x.to(torch.float8_e5m2), "float8_e5m2"),
        (x.to(torch.complex64), "ComplexFloat"),
        (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised"),
        (x.to_sparse(), "sparse"),
    ]:
        tree = {"m": {"a": x, "b": tensor}, "dtype": torch.float32}
        torch.save(tree, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(UserError, match=f"the tensor 'm.b' is of the type {dtype}, which is"):
            read_tree(tmp_path / "x.pth")


def test_a_type_of_torch_among_the_settings_does_no_harm(tmp_path):
    settings = hostile.text(b"dtype") + hostile.named("torch", "float8_e4m3fn")
    tree = b"}(" + hostile.text(b"a") + hostile.tensor() + settings + b"u."
    (tmp_path / "x.pth").write_bytes(hostile.zipped(hostile.PROTOCOL + tree))
    assert flatten(read_tree(tmp_path / "x.pth")).keys() == {"a"}


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_long_names_are_refused(tmp_path, kind):
    for length, fits in ((1000, True), (1001, False)):
        name, path = "a" * length, tmp_path / f"x.{kind}"
        if kind == "safetensors":
            save_file({name: np.zeros(2)}, path)
        else:
            tree = hostile.PROTOCOL + b"}" + hostile.text(name.encode()) + hostile.tensor() + b"s."
            path.write_bytes(hostile.zipped(tree))
        if fits:
            assert read_tree(path).keys() == {name}
        else:
            with pytest.raises(UserError, match="a name of more than 1000 characters"):
                read_tree(path)
