"""What comes with the package beside its code: the configs, and trained models. In a checkout they
lie beside the package, in a wheel inside it (setup.py).
"""

import os
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
MODEL = "pretrained/emoji64"  # for commands to which no workdir is given


def shipped(name: str | os.PathLike) -> Path | None:
    """The file or folder of that name that came with the package, if there is one."""
    checkout = PACKAGE.parent
    places = [PACKAGE] + [checkout] * (checkout / "setup.cfg").is_file()
    return next((place / name for place in places if (place / name).exists()), None)


def config_names() -> list[str]:
    """Names of the configs, for --config=NAME."""
    folder = shipped("configs")
    return sorted(path.stem for path in folder.glob("*.py")) if folder else []


def config_path(named: str) -> str:
    """The path of a config: `named` itself if it is a file, or else the shipped one that it names,
    as `emoji` or `configs/emoji.py`. Any other `named` comes back as it is.
    """
    name = re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", named)
    if name and not Path(named).is_file() and (found := shipped(f"configs/{name[1]}.py")):
        return os.fspath(found)
    return named


def model_path(workdir: str | os.PathLike) -> str | os.PathLike:
    """`workdir`, or the shipped model that it names where there is no such folder."""
    if workdir and not os.path.exists(workdir) and not os.path.isabs(workdir):
        return shipped(workdir) or workdir
    return workdir
