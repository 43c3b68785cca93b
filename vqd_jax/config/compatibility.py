"""Configs that earlier versions stored in checkpoints, in the words of this one."""

import copy
import os
from typing import Any

from vqd_jax.core.errors import UserError

# Removed keys, with the value at which they had no effect
REMOVED: dict[tuple[str, str], Any] = {
    ("denoiser", "predict"): "x0",
    ("diffusion_loss", "antithetic"): False,
    ("diffusion_loss", "continuous"): False,
}
# Keys that have another name now
RENAMED: dict[tuple[str, str], str] = {("codebook", "update"): "updates"}
# Values that have another name now
RENAMED_VALUES: dict[tuple[str, str], dict[Any, str]] = {
    ("denoiser", "attention"): {"whole": "full", "parts": "chunked"},
    ("denoiser", "remat"): {False: "none", True: "full"},
    ("evaluation", "name"): {"cells": "emoji"},
}


def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config without the keys of REMOVED and with the new names of keys and values.
    UserError for a removed key that had an effect.
    """
    config = copy.deepcopy(stored)
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    for (section, key), neutral in REMOVED.items():
        value = sections.get(section, {}).pop(key, neutral)
        if value != neutral:
            raise UserError(
                f"the stored config has {section}.{key}={value!r}, which this version no longer "
                "supports: use the version that trained it"
            )
    for (section, key), name in RENAMED.items():
        if key in sections.get(section, {}):
            sections[section][name] = sections[section].pop(key)
    for (section, key), names in RENAMED_VALUES.items():
        value = sections.get(section, {}).get(key)
        if isinstance(value, (str, bool)) and value in names:
            sections[section][key] = names[value]
    return config


def without_local_paths(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config for other people: the cache and absolute paths, which name folders of this
    machine, become empty.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: "" if key == "cache" else strip(x) for key, x in value.items()}
        local = isinstance(value, str) and (os.path.isabs(value) or value.startswith("~"))
        return "" if local else value

    return strip(stored)
