"""Configs and models that come with the package are found by name, in a checkout and in a wheel."""

import shutil

import pytest

from helpers import ROOT
from vqd_jax.core import shipped


def test_every_config_has_a_name():
    assert {"emoji", "folder", "cub"} <= {*shipped.config_names()}
    assert shipped.config_path("emoji") == str(ROOT / "configs" / "emoji.py")


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.config_path("configs/emoji.py") == str(ROOT / "configs" / "emoji.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "emoji.py").write_text("")
    assert shipped.config_path("configs/emoji.py") == "configs/emoji.py"
    (tmp_path / "emoji").write_text("")
    assert shipped.config_path("emoji") == "emoji"


@pytest.mark.parametrize("name", ["none", "../setup", "/etc/hostname", "vqd_jax", "README", ""])
def test_any_other_name_stays_as_it_is(name):
    assert shipped.config_path(name) == name


def test_in_a_wheel_they_lie_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "vqd_jax"
    shutil.copytree(ROOT / "configs", package / "configs")
    (package.parent / "configs").mkdir()  # that of another package
    (package / "pretrained" / "emoji64").mkdir(parents=True)
    monkeypatch.setattr(shipped, "PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    assert shipped.config_path("cub") == str(package / "configs" / "cub.py")
    assert shipped.model_path(shipped.MODEL) == package / "pretrained" / "emoji64"
    assert shipped.model_path("runs/mine") == "runs/mine"
    shutil.rmtree(package / "configs")
    assert shipped.config_names() == [] and shipped.config_path("cub") == "cub"
