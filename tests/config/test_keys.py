"""The help about config keys: all of them, in their order, and as the command line takes them."""

import shlex
import sys
from unittest import mock

import pytest
from absl import flags
from ml_collections import ConfigDict

from helpers.commands import run_in_process
from vqd_jax.cli.flags import define_config_flag
from vqd_jax.config.defaults import defaults
from vqd_jax.config.keys import comments, key_rows
from vqd_jax.core.shipped import config_path


def names(config):
    """Sections and keys in their order."""
    for name in config:
        yield name
        if hasattr(config[name], "items"):
            yield from (f"{name}.{key}" for key in config[name])


def test_every_key_is_found_in_the_source_once():
    assert sorted(comments()) == sorted(names(defaults()))


def test_no_key_is_hidden_by_a_method_of_the_config():
    """Such a key cannot be set on the command line."""
    assert not [name for name in names(defaults()) if hasattr(ConfigDict, name.split(".")[-1])]


def test_a_comment_is_what_stands_above_and_beside():
    found = comments()
    assert found["seed"] == "random seed of the data order, initial weights and noise"
    assert (
        found["data.source"].startswith("emoji | folder | cub") and "below" in found["data.source"]
    )
    assert found["mixture"].startswith("shares of training examples")
    assert found["guard.tries"].startswith("roll-backs in a row")


@pytest.mark.parametrize("name", ["emoji:pretrained", "cub", "emoji64"])
def test_what_is_shown_is_what_the_command_line_takes(name):
    """All keys of a config, given to the default one, make that config."""
    path, _, variant = name.partition(":")

    def parsed(config, *arguments):
        options = flags.FlagValues()
        argv = ["vqd", f"--config={config}", *arguments]
        with mock.patch.object(sys, "argv", argv):  # where ml_collections looks for keys
            define_config_flag(options)
            options(argv)
        return options.config

    config = parsed(f"{config_path(path)}:{variant}" if variant else config_path(path))
    rows = [left for left, _ in key_rows(config) if left.startswith("--")]
    arguments = [word for row in rows for word in shlex.split(row)]
    assert len(arguments) == len(rows)
    assert parsed(config_path("emoji"), *arguments).to_json() == config.to_json()


def test_the_help_of_a_config(capsys):
    done = run_in_process("train", "--config=emoji", "--config.denoiser.layers=7", "--help")
    assert (
        "keys of the config emoji:" in done.stdout and "--config.denoiser.layers=7" in done.stdout
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("--config.")]
    assert max(map(len, lines)) <= 100
    assert "keys of the config" not in run_in_process("train", "--help").stdout
