"""Finds pretrained weights by name: a local folder, or a repository of the Hugging Face hub, which
is downloaded once and cached.
"""

import re
from pathlib import Path

from vqd_jax.core.errors import UserError

FILES = ("vocab.json", "merges.txt", "model.safetensors", "config.json")


def local_folder(name: str) -> Path:
    """The folder of that name, or the cached copy of the hub's repository; UserError if there is
    neither.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"there is no folder {name!r}, and it is not the name of a repository on the Hugging "
            "Face hub, such as openai/clip-vit-base-patch32"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    # The hub's client raises many kinds, for the network, names and permissions.
    except Exception as error:
        raise UserError(
            f"there is no folder {name}, and it could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}): put its files {', '.join(FILES)} into a folder and give "
            "its path"
        ) from error
