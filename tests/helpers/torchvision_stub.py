"""Imports packages that measure images, to compare with their networks, with a stub for torchvision.

Every torchvision is built for one PyTorch, and these tests need no more of it than layers in a row.
"""

import sys
from unittest.mock import MagicMock

import pytest


def import_with(torchvision, name):
    """Imports the module of that name again, with all its submodules, with `torchvision` as that
    package; skips the test if it is not installed.
    """
    with pytest.MonkeyPatch.context() as patch:
        for part in ("models", "transforms", "transforms.functional", "datasets"):
            patch.setitem(sys.modules, f"torchvision.{part}", MagicMock())
        patch.setitem(sys.modules, "torchvision", torchvision)
        for module in [m for m in sys.modules if f"{m}.".startswith(f"{name}.")]:
            patch.delitem(sys.modules, module)
        return pytest.importorskip(name)
