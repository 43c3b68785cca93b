"""Packages that others measure with, to compare with their networks, without the torchvision that
they import.

It is built for one PyTorch alone, and of its networks only layers in a row are wanted here, or what
the package then replaces.
"""

import sys
from unittest.mock import MagicMock

import pytest


def import_with(torchvision, name):
    """The module of that name, with what is in it, imported anew with `torchvision` as that
    package; skips if it is not installed.
    """
    with pytest.MonkeyPatch.context() as patch:
        for part in ("models", "transforms", "transforms.functional", "datasets"):
            patch.setitem(sys.modules, f"torchvision.{part}", MagicMock())
        patch.setitem(sys.modules, "torchvision", torchvision)
        for module in [m for m in sys.modules if f"{m}.".startswith(f"{name}.")]:
            patch.delitem(sys.modules, module)
        return pytest.importorskip(name)
