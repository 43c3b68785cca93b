"""Where pretrained weights are looked for."""

import huggingface_hub
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models.weights.hub import FILES, local_folder


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert local_folder(str(tmp_path)) == tmp_path


def test_a_name_that_is_neither_is_one_sentence():
    with pytest.raises(
        UserError, match="there is no file or folder 'clip', and it is not the name of a repos"
    ):
        local_folder("clip")


def test_a_repository_is_fetched_with_the_files_that_are_read(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **kw: asked.append((name, kw)) or str(tmp_path),
    )
    assert local_folder("openai/clip-vit-base-patch32") == tmp_path
    assert asked == [("openai/clip-vit-base-patch32", {"allow_patterns": list(FILES)})]


def test_a_repository_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError,
        match="could not be downloaded from the Hugging Face hub .*: put its files vocab.json",
    ):
        local_folder("nobody/nothing-of-this-name")
