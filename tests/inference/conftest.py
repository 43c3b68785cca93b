"""Fixtures of the tests of inference."""

import pytest

from helpers.shipped import shipped as shipped


@pytest.fixture(scope="session")
def model(shipped):
    """The shipped model; tests must not change it."""
    return shipped
