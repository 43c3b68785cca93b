"""Arrays of .npz files are known before they are read, and equal what numpy loads."""

import zipfile

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.eval.npz import stored_arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_was_saved(tmp_path, save, order):
    x = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8), order=order)
    y = np.arange(7.0)
    save(tmp_path / "a.npz", x, mu=y, other=np.zeros(2))
    stored = stored_arrays(tmp_path / "a.npz", ("mu", "arr_0", "gone"))
    assert stored.keys() == {"mu", "arr_0"}
    assert (stored["arr_0"].shape, stored["arr_0"].dtype) == (x.shape, np.uint8)
    mapped = stored["arr_0"].mapped()
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, x)
    np.testing.assert_array_equal(stored["mu"].read(), y)
    np.testing.assert_array_equal(stored["mu"].mapped(), y)


def header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content,why",
    [
        (header((2**40, 2**20, 2**20, 3)), "ValueError: arr_0.npy does not have the size of its"),
        (header((2, 1, 1, 3)) + bytes(7), "does not have the size of its uint8 of"),
        (header((2, 1, 1, 3))[:20], "ValueError"),
        (b"", "ValueError"),
        (b"\x93NUMPY\x09\x00" + bytes(99), r"KeyError: \(9, 0\)"),
    ],
)
def test_a_lie_about_the_size_is_an_error_before_anything_is_allocated(tmp_path, content, why):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content)
    with pytest.raises(UserError, match=f"a.npz is not a readable .npz file .*{why}"):
        stored_arrays(tmp_path / "a.npz", ["arr_0"])


def test_files_that_are_no_archive_are_an_error(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"a.npz is not a readable .npz file \(BadZipFile"):
        stored_arrays(tmp_path / "a.npz", ["arr_0"])
    np.savez_compressed(tmp_path / "a.npz", np.arange(999))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    stored = stored_arrays(tmp_path / "a.npz", ["arr_0"])["arr_0"]
    content[500] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    for read in (stored.read, stored.mapped):
        with pytest.raises(UserError, match="a.npz is not a readable .npz file"):
            read()
