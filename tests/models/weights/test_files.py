"""Weight files as trees: safetensors everywhere, PyTorch's formats where PyTorch is installed."""

import numpy as np
import pytest
from safetensors.numpy import save_file

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
