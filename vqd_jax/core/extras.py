"""Optional dependencies, the extras of setup.cfg. The error for a missing one has the command that
installs it.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from vqd_jax.core.errors import UserError


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """The imported module. UserError, which begins with `purpose`, if it is not installed.

    Args:
      module: its dotted name.
      extra: the extra of this package that installs it.
      purpose: what needs it, as the subject of a sentence.
    """
    check_extra(module, extra, purpose)
    return importlib.import_module(module)


def check_extra(module: str, extra: str, purpose: str) -> None:
    """UserError if the top-level package of `module` is not installed, which is not imported."""
    package_folder(module.partition(".")[0], extra, purpose)


def package_folder(package: str, extra: str, purpose: str) -> Path:
    """The folder of an installed top-level package, which is not imported. UserError without it."""
    spec = importlib.util.find_spec(package)
    # a folder of that name in the working directory has no origin
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise UserError(
            f'{purpose} needs {package}, which is not installed: pip install "vqd_jax[{extra}]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(package: str, relative: str, extra: str, purpose: str) -> Path:
    """A file in an installed top-level package. UserError without the package or the file."""
    path = package_folder(package, extra, purpose) / relative
    if not path.is_file():
        raise UserError(
            f"the installed {package} lacks {relative}: pip install --force-reinstall "
            f'"vqd_jax[{extra}]"'
        )
    return path
