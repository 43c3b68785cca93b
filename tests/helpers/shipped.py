"""The shipped model, loaded once for all tests of a process."""

import functools

import pytest

from helpers import ROOT
from vqd_jax.inference import pipeline

SHIPPED = ROOT / "pretrained" / "emoji"


@functools.cache
def load() -> pipeline.TextToImage:
    return pipeline.load(SHIPPED)


@pytest.fixture(scope="session")
def shipped() -> pipeline.TextToImage:
    """The shipped model; tests must not change it."""
    return load()
