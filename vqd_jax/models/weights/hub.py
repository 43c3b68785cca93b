"""Finds pretrained weights by name: a local file or folder, or a repository of the Hugging Face
hub, which is downloaded once and cached.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from vqd_jax.core.errors import UserError
from vqd_jax.core.text_files import read_text, shown

FILES = ("vocab.json", "merges.txt", "model.safetensors", "config.json")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME
ENDS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".gz")


def local_folder(name: str, files: Sequence[str] = FILES) -> Path:
    """The file or folder of that name, or the cached copy of the hub's repository, of which the
    files of those patterns are downloaded; UserError if there is neither.
    """
    path = Path(name).expanduser()
    if path.exists():
        return snapshot(path)
    if not REPOSITORY.fullmatch(name) or name.endswith(ENDS):
        raise UserError(
            f"there is no file or folder {shown(name)}, and it is not the name of a repository on "
            "the Hugging Face hub (OWNER/NAME)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    # The hub's client raises many kinds, for the network, names and permissions.
    except Exception as error:
        some = ", ".join(files[:4]) + (", …" if len(files) > 4 else "")
        raise UserError(
            f"there is no folder {name}, and it could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}): put its files {some} into a folder and give its path"
        ) from error


def snapshot(path: Path) -> Path:
    """The path itself, or the newest snapshot in a cache folder of the hub (models--OWNER--NAME).
    UserError if the download did not end.
    """
    snapshots, ref = path / "snapshots", path / "refs" / "main"
    if not snapshots.is_dir():
        return path
    commits = [folder.name for folder in snapshots.iterdir() if folder.is_dir()]
    commit = read_text(ref, 99).strip() if ref.is_file() or len(commits) != 1 else commits[0]
    if commit not in commits:
        raise UserError(
            f"the cache folder {path} of the Hugging Face hub lacks the snapshot {shown(commit)} "
            f"that {ref} names: download it again"
        )
    return snapshots / commit
